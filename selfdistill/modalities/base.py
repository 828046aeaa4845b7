"""What a modality has to bring, and how it is found.

A modality is a folder ``selfdistill/modalities/<name>/`` (or any importable dotted path) whose
``__init__`` declares ``MODALITY``. Nothing outside that folder names it.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from selfdistill.config import EncoderConfig, MaskConfig, RunConfig
from selfdistill.data.pipeline import InputPipeline
from selfdistill.errors import UserError
from selfdistill.models.flops import Counts, EncoderFlops
from selfdistill.packing.declaration import Packing
from selfdistill.renaming import Names
from selfdistill.types import Masks, Tokens

if TYPE_CHECKING:
    from selfdistill.modalities.learned import FeaturePicture
    from selfdistill.modalities.picture import SamplePicture


class FeatureEncoder(nn.Module, ABC):
    """Raw input to a sequence of vectors, in steps that training takes one by one.

    Parameters named ``*mask_token``, ``*class_token`` and ``*position*`` are spared weight decay
    (``optim.no_decay``).

    ``embed`` makes local features (the part that a teacher may share with the student), ``locate``
    adds positions, ``enter`` what else the blocks expect. In between the student's tokens are
    hidden: by ``fill``, which puts the mask vector where it must not look, before ``locate``; or by
    ``keep``, which locates the visible tokens and drops the rest.
    """

    num_prefix_tokens: int = 0
    """P, tokens that ``enter`` puts in front of the sequence and that are no part of the input."""

    grid: tuple[int, int] | None = None
    """Tokens from top to bottom and from left to right; None: a sequence of any length."""

    local: nn.Module
    """The sub-module behind ``embed``."""

    def __init__(self) -> None:
        super().__init__()
        self.prenet = nn.ModuleList()
        """Blocks of the modality's own, between ``enter`` and the shared ones."""

    @property
    @abstractmethod
    def mask_vector(self) -> Tensor:
        """What ``fill`` puts at masked places; broadcasts to [D].

        With strategy visible nothing is filled: then it must not be a parameter, for one without a
        gradient keeps several processes waiting for it.
        """

    @abstractmethod
    def embed(self, inputs: Tensor, lengths: Tensor | None) -> Tokens:
        """Local features [B, T, D] of raw ``inputs`` (see ``Batch``) and their padding."""

    @abstractmethod
    def locate(self, tokens: Tokens) -> Tokens:
        """Add positions to all tokens of the input, in order."""

    @abstractmethod
    def enter(self, tokens: Tokens) -> Tokens:
        """Add prefix tokens, norm and dropout to located tokens: [B, P + T, D]; ``places`` stay
        those of the T."""

    def fill(self, tokens: Tokens, masks: Masks) -> Tokens:
        """Every mask's version of the local features: [R, T, D]."""
        padding = None if tokens.padding is None else masks.repeat(tokens.padding)
        return Tokens(masks.fill(tokens.x, self.mask_vector), padding)

    def keep(self, tokens: Tokens, masks: Masks) -> Tokens:
        """Every mask's visible tokens, located: [R, V, D]."""
        return masks.keep(self.locate(tokens))

    def contextualise(self, tokens: Tokens) -> Tokens:
        """``locate`` and ``enter``."""
        return self.enter(self.locate(tokens))

    def attention_biases(self, places: Tensor) -> Sequence[Tensor]:
        """Biases on the attention logits between prefix tokens and the tokens at ``places``.

        Args:
            places: int64 [1 or R, V].

        Returns:
            [1 or R, H, P + V, P + V]: one for every block, or one for each (own ones first);
            empty: none.
        """
        return ()


@dataclass(frozen=True)
class OriginalFormat:
    """How the original authors' checkpoints of a modality are laid out.

    Attributes:
        marker: a parameter name that only this format has.
        names: pairs of a name in ``Backbone`` or of the predictor (``head...``, ``decoder...``) and
            one in the original; see ``renaming``. Every name of the original is in it once.
        teacher_prefixes: what the names of the original's teacher may lack in front.
        ignored: names of the original that carry nothing we need, as fnmatch patterns.
        sections: the original's model config (plain values) to sections of ours. Refuses
            (``UserError``) what the package cannot express.
    """

    marker: str
    names: Names
    teacher_prefixes: Sequence[str]
    ignored: Sequence[str]
    sections: Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class HubFormat:
    """How transformers keeps a modality's encoder, and what has to lie beside it.

    Attributes:
        model_type: the ``model_type`` of its ``config.json``.
        architecture: the class without a head; there its names have no prefix.
        prefix: what the names have in front in classes with a head.
        names: pairs of a name in ``Backbone`` and one of theirs, or several to be joined along the
            first axis; as in ``OriginalFormat``.
        dropped: parameters of ours that an exported folder has not: name pattern to the reason.
        optional: patterns of ours that a folder may lack besides; they keep their first values.
        ignored: patterns of their names that carry nothing we need.
        fold: their tensors, by names without a prefix, to ones that compute the same, where what
            ours lacks can be a part of what it has.
        unfold: the way back, of tensors that go into a folder.
        constants: run config to tensors of theirs that we have not.
        config: run config to the fields of ``config.json``. Refuses (``UserError``, with the key)
            what the class cannot hold.
        sections: their ``config.json``, their ``preprocessor_config.json`` (None where there is
            none) and the folder to sections of ours, all that is known of them. Refuses what we
            cannot hold.
        processor: run config and folder of its companions to what turns raw input into tensors,
            contents by file name.
        task: the Hub's name for what a model of this kind is for.
        read_as: keys of the config to values that folders cannot tell from others, and these.
        usage: run config to the lines of Python that read the features of a raw input; ``path``
            is the folder.
        caution: run config to what users of the weights must know, or nothing.
        beyond: their ``config.json`` to what it has the class compute of the features that no
            folder that is exported has it compute, or nothing.
    """

    model_type: str
    architecture: str
    prefix: str
    names: Names
    dropped: Mapping[str, str]
    optional: Sequence[str]
    ignored: Sequence[str]
    constants: Callable[[RunConfig], dict[str, Tensor]]
    config: Callable[[RunConfig], dict[str, Any]]
    sections: Callable[
        [Mapping[str, Any], Mapping[str, Any] | None, Path], dict[str, dict[str, Any]]
    ]
    processor: Callable[[RunConfig, Path], dict[str, str]]
    task: str
    usage: Callable[[RunConfig], str]
    read_as: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    caution: Callable[[RunConfig], str] = lambda config: ""
    beyond: Callable[[Mapping[str, Any]], str] = lambda theirs: ""
    fold: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors
    unfold: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors


@dataclass(frozen=True)
class Modality:
    """The declaration that ties a modality's files together.

    Attributes:
        name: the folder's name and the value of the config's ``modality`` key.
        encoder_config, mask_config, input_config: dataclasses of the config's sections. Every field
            has a default, and all defaults together pass ``check``: shards are inspected with them.
        build_encoder: run config to the feature encoder; it must work on the meta device.
        build_pipeline: run config to the input pipeline.
        originals: layouts of the original authors' checkpoints, where there are any.
        hub: layout of transformers' folders, where a class of it can hold the encoder.
        architecture: keys of the ``input`` section that the weights depend on.
        companions: a run's folder, or one of transformers, to the files in it that belong to the
            weights (a tokenizer), contents by name.
        attach: run config and the folder of its companions to the config that reads them there.
        check: refuses (``UserError``) configs that cannot work, before any data is read.
        prepare: makes what the run needs from its data before the model is built (a tokenizer)
            and returns the config to go on with; called on the main process first.
        length: a sample's members {extension: bytes} to its length in ``length_unit``, without
            decoding it; ``BadSample`` where it has none that can be told. Allows
            ``data.batch_length``. None: all samples are equally long.
        length_unit: such as seconds.
        packing: how raw data become samples; None: by other means.
        picture: run config to what shows samples to people. The config need not be prepared, and
            may be one of defaults that the samples were not made for: what it reads does not hang
            on their sizes. It imports what draws when it is called. None: nothing does.
        features: prepared run config and its pipeline to what shows people the features of
            samples; it imports what draws when it is called. None: nothing does.
        flops: prepared run config and what a micro-batch holds to the operations of its feature
            encoder, for ``bench``. Left out: the encoder has no matrix products or convolutions.
    """

    name: str
    encoder_config: type[EncoderConfig]
    mask_config: type[MaskConfig]
    input_config: type
    build_encoder: Callable[[RunConfig], FeatureEncoder]
    build_pipeline: Callable[[RunConfig], InputPipeline]
    originals: Sequence[OriginalFormat] = ()
    hub: HubFormat | None = None
    architecture: Sequence[str] = ()
    companions: Callable[[Path], Mapping[str, str]] = lambda folder: {}
    attach: Callable[[RunConfig, Path], RunConfig] = lambda config, folder: config
    check: Callable[[RunConfig], None] = lambda config: None
    prepare: Callable[[RunConfig], RunConfig] = lambda config: config
    length: Callable[[Mapping[str, bytes]], float] | None = None
    length_unit: str = ""
    packing: Packing | None = None
    picture: "Callable[[RunConfig], SamplePicture] | None" = None
    features: "Callable[[RunConfig, InputPipeline], FeaturePicture] | None" = None
    flops: Callable[[RunConfig, Counts], EncoderFlops] = lambda config, counts: EncoderFlops()


def check_share(mask_prob: float) -> None:
    """Refuse a masked share that leaves nothing to see or to predict."""
    if not 0 < mask_prob < 1:
        what = "nothing" if mask_prob <= 0 else "everything"
        raise UserError(
            f"mask.mask_prob: {mask_prob} would mask {what}; choose a value between 0 and 1"
        )


def check_spans(mask_prob: float, mask_length: int) -> None:
    """Refuse masks of spans that cannot work, for the ``check`` of a modality that has them."""
    check_share(mask_prob)
    if mask_length < 1:
        raise UserError(f"mask.mask_length: {mask_length} must be 1 or more")


def modality_names() -> list[str]:
    """The modalities that come with the package."""
    package = importlib.import_module("selfdistill.modalities")
    return sorted(found.name for found in pkgutil.iter_modules(package.__path__) if found.ispkg)


def load_modality(name: str) -> Modality:
    """The declaration of a modality of the package, or of a dotted module path from outside.

    Raises:
        UserError: there is no such modality.
    """
    module = name if "." in name else f"selfdistill.modalities.{name}"
    unknown = UserError(
        f"modality: there is no '{name}'; choose one of {', '.join(modality_names())}, "
        "or give the dotted path of a module that declares MODALITY"
    )
    if module.startswith("."):
        raise unknown
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise unknown from error
    declared = getattr(found, "MODALITY", None)
    if not isinstance(declared, Modality):
        raise UserError(f"modality: {module} declares no MODALITY; see modalities/base.py")
    return declared


def step_size(config: RunConfig) -> str:
    """What a step of a run over one modality has over all processes, in words."""
    if config.data.batch_length:
        return f"{config.data.batch_length:g} {load_modality(config.modality).length_unit}"
    return f"{config.train.batch_size} samples"
