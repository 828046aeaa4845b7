"""A training step of the original implementation of data2vec 2.0, from a checkout of it.

Its code is run as it is. What Python has refused since 3.11, a dataclass whose instances are the
default of a field, is let pass; a name that numpy has dropped is given back; and packages that only
its other models and its command line need are stood in for.
"""

import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.modalities.image.pixels import normalised
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Batch

STOOD_IN_FOR = ("hydra", "sacrebleu", "bitarray")
PADDING_ID = 1


class _StandIn(MagicMock):
    __path__: Sequence[str] = ()
    __version__ = "2"


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Behind all other finders: a package that is installed is taken."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] in STOOD_IN_FOR:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return _StandIn(name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _defaults_let_pass() -> Iterator[None]:
    """Python takes what can be hashed for a default that nobody changes."""
    original = dataclasses.dataclass

    def dataclass(cls: Any = None, /, **options: Any) -> Any:
        def made(cls: Any) -> Any:
            if cls.__module__.partition(".")[0] in ("fairseq", "examples"):
                options.setdefault("unsafe_hash", "__hash__" not in vars(cls))
            return original(cls, **options)

        return made if cls is None else made(cls)

    dataclasses.dataclass = dataclass  # type: ignore[assignment]
    try:
        yield
    finally:
        dataclasses.dataclass = original


def import_original(source: Path) -> None:
    """What ``OriginalStep`` needs, from a checkout of fairseq."""
    if not any(isinstance(finder, _StandIns) for finder in sys.meta_path):
        sys.path.insert(0, str(source))
        sys.meta_path.append(_StandIns())
    logging.disable(logging.INFO)
    vars(np)["float"] = float
    warnings.filterwarnings("ignore", category=FutureWarning)
    with _defaults_let_pass():
        importlib.import_module("examples.data2vec.models.data2vec2")
        importlib.import_module("fairseq.optim.adam")


class OriginalStep:
    """
    Args:
        config: of a run of one modality with the original's architecture.
        batch: with masks, without padding.

    Raises:
        ValueError: the original's model has another number of parameters than ours.
    """

    def __init__(self, config: RunConfig, batch: Batch) -> None:
        from fairseq.optim.adam import Adam

        assert batch.masks is not None
        self.inputs, self.masked = batch.inputs, batch.masks.masked
        if config.modality == "image":
            mean, std = torch.tensor(config.input.mean), torch.tensor(config.input.std)
            self.inputs = normalised(self.inputs, mean, std)
        self.model = _model(config, rows=len(self.masked)).train()
        self.learned = [p for p in self.model.parameters() if p.requires_grad]
        self.clip_norm = config.optim.clip_norm
        self.updates = 0
        optim = config.optim
        self.optimizer = Adam(
            self.learned,
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )
        count = sum(p.numel() for p in self.learned)
        with torch.device("meta"):
            ours = Data2Vec(config)
        expected = sum(p.numel() for p in ours.parameters() if p.requires_grad)
        if count != expected:
            raise ValueError(f"the original learns {count:,} parameters, ours {expected:,}")

    def loss(self) -> Tensor:
        output = self.model(self.inputs, precomputed_mask=self.masked)
        return sum(part.sum() for part in output["losses"].values()) / output["sample_size"]

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.learned, self.clip_norm)
        self.optimizer.step()
        self.updates += 1
        self.model.set_num_updates(self.updates)  # averages the teacher, too


def _model(config: RunConfig, rows: int) -> Any:
    from examples.data2vec.data.modality import Modality
    from examples.data2vec.models.data2vec2 import Data2VecMultiConfig, Data2VecMultiModel

    model, objective, teacher = config.model, config.objective, config.teacher
    modality = Modality[config.modality.upper()]
    settings = Data2VecMultiConfig(
        loss_beta=objective.loss_beta,
        loss_scale=None if objective.loss_scale == "rsqrt_width" else objective.loss_scale,
        depth=model.depth,
        num_heads=model.heads,
        norm_eps=model.norm_eps,
        encoder_dropout=model.dropout,
        post_mlp_drop=model.dropout,
        attention_dropout=model.attention_dropout,
        activation_dropout=model.activation_dropout,
        layerdrop=model.layer_drop,
        embed_dim=model.width,
        mlp_ratio=model.mlp_ratio,
        layer_norm_first=model.norm_order == "pre",
        average_top_k_layers=objective.average_top_k_layers,
        end_of_block_targets=objective.target_from == "block",
        clone_batch=config.mask.num_masks,
        instance_norm_target_layer="instance" in objective.layer_norms,
        layer_norm_targets="layer" in objective.target_norms,
        ema_decay=teacher.ema_decay,
        ema_end_decay=teacher.ema_end_decay,
        ema_anneal_end_step=teacher.ema_anneal_end_step,
        ema_encoder_only=teacher.scope == "blocks",
        max_update=config.train.steps,
        modalities=SimpleNamespace(**{config.modality: _own_settings(config)}),
        supported_modality=modality,
        seed=config.seed,
        cls_loss=objective.cls_loss / rows,  # it adds those of a batch up
    )
    return Data2VecMultiModel(settings, [modality], task=_task(config))


def _own_settings(config: RunConfig) -> Any:
    """Of the modality, with the decoder's."""
    from examples.data2vec.models.modalities.audio import D2vAudioConfig
    from examples.data2vec.models.modalities.images import D2vImageConfig
    from examples.data2vec.models.modalities.modules import D2vDecoderConfig
    from examples.data2vec.models.modalities.text import D2vTextConfig

    encoder, model, decoder = config.encoder, config.model, config.decoder
    shared = {
        "prenet_depth": encoder.prenet_depth,
        "prenet_dropout": model.dropout,
        "ema_local_encoder": config.teacher.scope == "all",
        "num_alibi_heads": model.heads,
        "model_depth": model.depth,
        "mask_noise_std": decoder.mask_noise_std,
        "decoder": D2vDecoderConfig(
            decoder_dim=decoder.width,
            decoder_groups=decoder.groups,
            decoder_kernel=decoder.kernel,
            decoder_layers=decoder.layers,
            input_dropout=decoder.input_dropout,
            decoder_residual=decoder.residual,
            projection_layers=decoder.projection_layers,
            projection_ratio=decoder.projection_ratio,
        ),
    }
    if config.modality == "image":
        return D2vImageConfig(
            input_size=config.input.size[0],
            patch_size=encoder.patch_size,
            embed_dim=model.width,
            num_extra_tokens=encoder.num_extra_tokens,
            init_extra_token_zero=False,
            mask_length=config.mask.mask_length,
            **shared,
        )
    if config.modality == "audio":
        return D2vAudioConfig(
            feature_encoder_spec=repr([tuple(layer) for layer in encoder.conv_layers]),
            conv_pos_depth=encoder.position_depth,
            conv_pos_width=encoder.position_width,
            conv_pos_groups=encoder.position_groups,
            use_alibi_encoder=encoder.alibi,
            learned_alibi_scale=encoder.alibi,
            learned_alibi_scale_per_head=encoder.alibi_per_head,
            **shared,
        )
    return D2vTextConfig(
        max_source_positions=config.input.max_tokens, dropout=model.dropout, **shared
    )


def _task(config: RunConfig) -> Any:
    """Text's encoder asks it for the vocabulary."""
    if config.modality != "text":
        return None

    class Vocabulary:
        def pad(self) -> int:
            return PADDING_ID

        def __len__(self) -> int:
            return config.encoder.vocab_size

    return SimpleNamespace(source_dictionary=Vocabulary())
