"""All probes of one labelled set, on every source of features, as plain values."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from selfdistill.errors import UserError
from selfdistill.outputs import say
from selfdistill.probes.attentive import attentive
from selfdistill.probes.classify import Score
from selfdistill.probes.ctc import SpellingScore, spell, transcript
from selfdistill.probes.features import UNLABELLED, Features
from selfdistill.probes.labels import check_labels
from selfdistill.probes.panel import Panel
from selfdistill.probes.per_token import (
    TokenLabels,
    only_shared,
    read_token_labels,
    tokens_to_fit,
    tokens_to_test,
)
from selfdistill.probes.request import FEW_SHOT_DRAWS, NEIGHBOURS, Request
from selfdistill.probes.result import plain_scores, plain_spelling
from selfdistill.probes.sets import LabelledSet, Split
from selfdistill.probes.source import Source
from selfdistill.probes.splits import group_split

logger = logging.getLogger(__name__)


def check_set(request: Request, labelled: LabelledSet, train: np.ndarray, test: np.ndarray) -> None:
    """Refuse (``UserError``) labels that the probes cannot work with, int64."""
    named = replace(labelled.named, few_shot="--few-shot", classes=labelled.classes)
    check_labels(named, train, test, _few_shot(request))
    for k in request.neighbours or ():
        if k > len(train) and "knn" in request.probes:
            raise UserError(
                f"--neighbours: {k}, but {named.train} has {len(train)} samples for training"
            )


def probe_samples(
    request: Request, labelled: LabelledSet, sources: Sequence[Source], raw_input: str
) -> dict[str, Any]:
    """Classes of whole samples."""
    found: dict[str, dict[str, Score]] = {}
    sizes = {}
    for source in sources:
        scores: dict[str, Score] = {}
        if set(request.probes) - {"attentive"}:
            train, test = (source.features(*split) for split in _splits(labelled))
            check_set(request, labelled, train.labels, test.labels)
            sizes = _sizes(train, test)
            scores |= _panel(request, len(train.labels))(train, test)
        if "attentive" in request.probes and source.backbone is not None:
            train, test = (source.features(*split, tokens=True) for split in _splits(labelled))
            check_set(request, labelled, train.labels, test.labels)
            sizes = _sizes(train, test)
            say(f"{source.name}: attentive probe")
            scores["attentive"] = attentive(train, test, request.seed, source.device)
        for name, score in scores.items():
            found.setdefault(name, {})[source.name] = score
    return {
        **sizes,
        "class_names": [*labelled.classes],
        "raw_input": raw_input,
        "probes": {name: plain_scores(by, request.seed) for name, by in found.items()},
    }


def probe_tokens(
    request: Request, labelled: LabelledSet, sources: Sequence[Source], by_time: bool
) -> dict[str, Any]:
    """Classes of single tokens, by the encoders; see ``TokenLabels`` and ``only_shared``."""
    request = replace(request, probes=[p for p in request.probes if p in ("linear", "knn")])
    found: dict[str, dict[str, Score]] = {}
    sizes, groups = {}, None
    splits = zip((labelled.train, labelled.test), _names(labelled), strict=True)
    given = [
        TokenLabels(split.samples.keys, [*map(read_token_labels, split.members)], by_time, name)
        for split, name in splits
    ]
    for source in _encoders(sources):
        parts = _whole(source, labelled)
        told, single = only_shared(*(t.of(part) for t, part in zip(given, parts, strict=True)))
        if single and not found:
            classes = labelled.named.listed(single)
            logger.warning("only one split has class %s; its tokens are left out", classes)
        check_set(request, labelled, *(labels[labels != UNLABELLED] for labels in told))
        train = tokens_to_fit(parts[0], told[0], request.seed)
        test = tokens_to_test(parts[1], told[1], request.seed)
        _check_inputs(train, labelled.named.train, request.seed)
        sizes, groups = _sizes(train, test), test.groups
        for name, score in _panel(request, len(train.labels))(train, test).items():
            found.setdefault(name, {})[source.name] = score
    probes = {name: plain_scores(by, request.seed, groups) for name, by in found.items()}
    return {**sizes, "per": "token", "probes": probes}


def _check_inputs(train: Features, named: str, seed: int) -> None:
    """Refuse so few inputs that there is none to choose by, or not two classes in the others."""
    assert train.groups is not None
    fit, held = group_split(train.groups, seed)
    if not len(held) or len(np.unique(train.labels[fit])) < 2:
        inputs = len(np.unique(train.groups))
        raise UserError(
            f"{named}: inputs with labelled tokens: {inputs}, of which a fifth is kept to choose a "
            "layer; the others need two classes: give more inputs"
        )


def probe_transcripts(
    request: Request, labelled: LabelledSet, sources: Sequence[Source]
) -> dict[str, Any]:
    """Transcripts, by the encoders; see ``spell``."""
    found: dict[str, SpellingScore] = {}
    sizes = {}
    for source in _encoders(sources):
        train, test = _whole(source, labelled)
        texts = [transcript(labelled.train.members[i]) for i in train.numbers]
        expected = [transcript(labelled.test.members[i]) for i in test.numbers]
        sizes = {"train_samples": len(texts), "test_samples": len(expected)}
        say(f"{source.name}: CTC probe")
        found[source.name] = spell(
            train, texts, test, expected, request.seed, source.device, labelled.named.train
        )
    return {**sizes, "probes": {"ctc": plain_spelling(found, request.seed)}}


def _encoders(sources: Sequence[Source]) -> list[Source]:
    return [source for source in sources if source.backbone is not None]


def _whole(source: Source, labelled: LabelledSet) -> list[Features]:
    """Tokens of samples that are not cropped: of others labels and transcripts are not true."""
    return [source.features(*split, tokens=True, whole=True) for split in _splits(labelled)]


def _names(labelled: LabelledSet) -> tuple[str, str]:
    return labelled.named.train, labelled.named.test


def _splits(labelled: LabelledSet) -> list[tuple[Split, str]]:
    return [
        (labelled.train, f"{labelled.name}, train"),
        (labelled.test, f"{labelled.name}, test"),
    ]


def _sizes(train: Features, test: Features) -> dict[str, int]:
    classes = len(np.unique(train.labels))
    samples = len(train.labels), len(test.labels)
    return {"classes": classes, "train_samples": samples[0], "test_samples": samples[1]}


def _few_shot(request: Request) -> int:
    return request.few_shot_labels if "few-shot" in request.probes else 0


def _panel(request: Request, samples: int) -> Panel:
    numbers = request.neighbours or [k for k in NEIGHBOURS if k <= samples]
    return Panel(
        request.seed,
        linear="linear" in request.probes,
        few_shot_labels=_few_shot(request),
        few_shot_draws=FEW_SHOT_DRAWS,
        neighbours={f"knn_{k}": k for k in numbers} if "knn" in request.probes else {},
        every_layer=True,
    )
