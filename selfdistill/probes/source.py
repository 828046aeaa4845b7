"""Where features come from: an encoder or the raw input, with what was computed before."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from selfdistill.data.ledger import Bad, reasons_of
from selfdistill.data.pipeline import InputPipeline
from selfdistill.errors import UserError
from selfdistill.modalities.backbone import Backbone
from selfdistill.outputs import say
from selfdistill.probes.cache import FeatureCache, weights_digest
from selfdistill.probes.features import Features, Rows, baseline_rows, encoder_rows
from selfdistill.probes.sets import Split
from selfdistill.probes.tokens import CPU

RAW = "raw"


@dataclass
class Source:
    """Features of one encoder, or of the raw input.

    Attributes:
        name: "raw", "untrained" or "trained".
        backbone: None for the raw input.
        pipeline, batch_size: of the samples.
        settings: plain values that the features depend on besides weights and data.
        cache: where they are kept.
    """

    name: str
    backbone: Backbone | None
    pipeline: InputPipeline
    batch_size: int
    settings: Mapping[str, Any]
    cache: FeatureCache

    def __post_init__(self) -> None:
        self._weights = "" if self.backbone is None else weights_digest(self.backbone)

    @property
    def device(self) -> torch.device:
        """Of the encoder."""
        return CPU if self.backbone is None else next(self.backbone.parameters()).device

    def features(
        self, split: Split, what: str, tokens: bool = False, whole: bool = False
    ) -> Features:
        """Of all samples that can be used, with their labels; see ``encoder_rows``.

        Args:
            what: name of the split, for the console.

        Raises:
            HealthError: a feature is not finite.
            DataBudgetError: all samples are bad.
            UserError: the cache is too small.
        """
        key = {
            "weights": self._weights,
            "settings": self.settings,
            "data": split.identity,
            "tokens": tokens,
            "whole": whole,
        }
        found = self.cache.find(key)
        title = f"{self.name}, {what}" + (" (tokens)" if tokens else "")
        if found is not None:
            say(f"{title}: {len(found.numbers)} samples found in {self.cache.folder}")
        else:
            rows = self._computed(split, title, tokens, whole)
            found = self.cache.keep(key, rows, len(split.labels))
        return replace(found, labels=split.labels[found.numbers])

    def _computed(self, split: Split, title: str, tokens: bool, whole: bool) -> Iterator[Rows]:
        samples, pipeline = split.samples, self.pipeline
        bad: list[Bad] = []
        rows: Iterable[Rows]
        if self.backbone is None:
            rows = baseline_rows(samples, pipeline, skip=bad.append)
        else:
            size = self.batch_size
            rows = encoder_rows(
                self.backbone, samples, pipeline, size, tokens, whole, skip=bad.append
            )
        with (
            logging_redirect_tqdm(),
            tqdm(total=len(split.labels), desc=title, unit=" samples", disable=None) as bar,
            # TF32 convolutions, a GPU's default, would make a row depend on its batch
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            count = 0
            for found in rows:
                yield found
                count += len(found.numbers)
                bar.update(len(found.numbers))
            if not count:
                raise UserError(
                    f"{title}: every sample is longer than the model takes, and labels or "
                    "transcripts of a part are not known; give shorter ones"
                )
        if bad:
            total = len(split.labels)
            say(f"{title}: {len(bad)} of {total} samples are left out: {reasons_of(bad)}")
