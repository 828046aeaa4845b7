"""Frozen-feature evaluation of an encoder that exists, beside its baselines."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch

from selfdistill.data.elsewhere.address import Access
from selfdistill.data.pipeline import InputPipeline
from selfdistill.devices import choose_device
from selfdistill.errors import UserError
from selfdistill.modalities.backbone import Backbone, untrained_backbones
from selfdistill.pretrained import Pretrained, load_pretrained
from selfdistill.probes.cache import FeatureCache, texts_digest
from selfdistill.probes.ctc import TRANSCRIPT
from selfdistill.probes.labels import Named
from selfdistill.probes.per_token import TOKEN_LABELS
from selfdistill.probes.request import Request, check_request
from selfdistill.probes.sets import LabelledSet, Opener
from selfdistill.probes.source import RAW, Source
from selfdistill.probes.tasks import check_set, probe_samples, probe_tokens, probe_transcripts

TASK = "data"
REMEDY = "give every sample a .cls member that holds its class as an integer from 0, or --labels"


def probe(request: Request) -> dict[str, Any]:
    """Every probe on every labelled set.

    Returns:
        {"model", "source", "weights", "step", "modality", "seed", "tasks": {name: {"classes",
        "class_names", "train_samples", "test_samples", "raw_input", "probes": {probe: {source:
        score}}}}} with the sources "raw" (not for the attentive probe), "untrained" and "trained".
        A score has "accuracy", "low" and "high" (95 %), "standard_error", "n", "layer", for
        few_shot "std", and "layers": the same of every layer. "trained" also has "over": {source:
        {"difference", "low", "high"}}.

    Raises:
        UserError: an argument cannot work, or the labels cannot be used.
        HealthError: an encoder's features are not finite.
        DataBudgetError: no sample can be used.
    """
    check_request(request)
    place = choose_device(request.device)
    pretrained = load_pretrained(request.model, request.weights, request.modality)
    pipeline = pretrained.modality.build_pipeline(pretrained.config)
    member = TRANSCRIPT if request.ctc else TOKEN_LABELS if request.per_token else ""
    sets = _sets(request, pretrained, pipeline, member)
    if not member:
        for labelled in sets:
            check_set(request, labelled, labelled.train.labels, labelled.test.labels)
    cache = FeatureCache(request.cache, int(request.cache_gb * 1e9))
    sources = list(_sources(request, pretrained, pipeline, cache, place))

    def judge(labelled: LabelledSet) -> dict[str, Any]:
        if request.ctc:
            return probe_transcripts(request, labelled, sources)
        if request.per_token:
            by_time = pretrained.modality.length is not None
            return probe_tokens(request, labelled, sources, by_time)
        return probe_samples(request, labelled, sources, pipeline.baseline_name)

    return {
        "model": request.model,
        "source": str(pretrained.source),
        "weights": pretrained.weights,
        "step": pretrained.step,
        "modality": pretrained.config.modality,
        "seed": request.seed,
        "tasks": {labelled.name: judge(labelled) for labelled in sets},
    }


def _sets(
    request: Request, pretrained: Pretrained, pipeline: InputPipeline, member: str
) -> list[LabelledSet]:
    config = pretrained.config
    if member in pipeline.extensions:
        raise UserError(f"--ctc: {config.modality} has no transcripts, its .{member} is the input")
    access = Access.of(config.data)
    opener = Opener(pipeline.extensions, access, request.labels, request.seed, member)
    if request.data:
        named = Named("DATA", "DATA", "--few-shot", REMEDY)
        return [opener.single(TASK, request.data, named)]
    if request.train:
        named = Named("--train", "--test", "--few-shot", REMEDY)
        return [opener.pair(TASK, request.train, request.test, named)]
    if not config.eval.tasks:
        raise UserError(
            f"DATA: {pretrained.source} names no labelled set of its own (eval.tasks); give "
            "labelled shards"
        )
    return [opener.of_task(name, task) for name, task in config.eval.tasks.items()]


def _sources(
    request: Request,
    pretrained: Pretrained,
    pipeline: InputPipeline,
    cache: FeatureCache,
    place: torch.device,
) -> Iterator[Source]:
    config, batch_size = pretrained.config, pretrained.batch_size(request.batch_size)
    companions: Mapping[str, str] = {}
    with suppress(UserError):  # there are none
        companions = pretrained.modality.companions(pretrained.companions)
    sections = {name: asdict(getattr(config, name)) for name in ("input", "encoder", "model")}
    sections["compat"] = asdict(config.compat)
    settings = {"modality": config.modality, "companions": texts_digest(companions), **sections}

    def source(name: str, backbone: Backbone | None) -> Source:
        moved = None if backbone is None else backbone.to(place)
        return Source(name, moved, pipeline, batch_size, settings, cache)

    if request.baselines:
        yield source(RAW, None)
        (name,) = config.parts()
        yield source("untrained", untrained_backbones(pretrained.run)[name])
    yield source("trained", pretrained.backbone)
