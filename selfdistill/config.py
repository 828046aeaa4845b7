"""The typed configuration of a run: every key with its default.

The sections ``encoder``, ``mask`` and ``input`` belong to the modality: their dataclasses live in
``selfdistill/modalities/<name>/`` and are found through the ``modality`` key. Everything else is
here. Names are the papers' and the originals' where they have one.

A run over several modalities has ``modalities`` in place of ``modality``: below each name stand the
modality's own sections and what it sets otherwise than the rest of the file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal


@dataclass(frozen=True)
class EncoderConfig:
    """What the ``encoder`` sections of all modalities share."""

    prenet_depth: int = 0
    """Transformer blocks of the modality's own before the shared ones."""


@dataclass(frozen=True)
class MaskConfig:
    """What the ``mask`` sections of all modalities share."""

    num_masks: int = 1
    """Masks per sample (the originals' clone_batch); the teacher sees each sample once."""


@dataclass(frozen=True)
class ModelConfig:
    """The shared Transformer blocks."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    norm_order: Literal["pre", "post"] = "post"
    norm_eps: float = 1e-5
    key_bias: bool = True
    """BEiT-style image models have a bias on queries and values only."""
    layer_scale: float = 0.0
    """Initial value of the learned gain on both branches of a block; 0: none."""
    initializer: Literal["bert", "beit"] = "bert"
    """bert: normal(0.02). beit: the same cut at one deviation, output projections of block i
    divided by sqrt(2 i)."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    drop_path: float = 0.0
    """Stochastic depth per sample, rising linearly from 0 at the first block to this."""
    layer_drop: float = 0.0
    """Chance to skip a whole block for the whole batch."""

    @property
    def mlp_width(self) -> int:
        """Channels inside a block's feed-forward network."""
        return round(self.width * self.mlp_ratio)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Targets, head and loss."""

    average_top_k_layers: int = 8
    target_layers: list[int] = field(default_factory=list)
    """The averaged layers by 0-based index, in place of the top K."""
    target_from: Literal["ffn", "block"] = "ffn"
    """ffn: feed-forward output before the residual (audio, text). block: block output (image)."""
    layer_norms: list[Literal["batch", "instance", "layer"]] = field(default_factory=list)
    """Normalisations of each layer before averaging, in order; without learned gains."""
    target_norms: list[Literal["layer", "instance"]] = field(default_factory=list)
    """Normalisations of the average, in order."""
    loss_beta: float = 0.0
    """Smooth L1 with this beta; 0: squared error."""
    loss_scale: int | float | str = "rsqrt_width"
    """Factor on the loss summed over the width: 1/sqrt(width), 1/width, or a number."""
    head_layers: int = 1
    """Linear layers behind the student; strategy dense."""
    head_initializer: Literal["default", "bert", "beit"] = "default"
    """default: torch's own."""
    cls_loss: float = 0.0
    """Weight of a second loss: the last extra token predicts the mean of the targets. Its mean over
    the masks of a batch is added to the mean over the masked tokens."""
    loss_weight: float = 1.0
    """Factor on a modality's loss in a run over several."""


@dataclass(frozen=True)
class DecoderConfig:
    """The convolutional decoder of the strategy visible."""

    width: int = 384
    """Channels (the originals' decoder_dim)."""
    layers: int = 4
    kernel: int = 7
    groups: int = 16
    residual: bool = True
    """Whether a layer that keeps the number of channels adds its input."""
    projection_layers: int = 1
    projection_ratio: float = 2.0
    """Width inside a projection of several layers, as a multiple of ``width``."""
    initializer: Literal["default", "bert"] = "default"
    """Of the projection; default: torch's own."""
    input_dropout: float = 0.0
    mask_noise_std: float = 0.01
    """Deviation of the noise that stands for what the student did not see."""

    @property
    def projection_width(self) -> int:
        """Channels inside a projection of several layers."""
        return int(self.width * self.projection_ratio)


@dataclass(frozen=True)
class TeacherConfig:
    """The moving average of the student."""

    ema_decay: float = 0.999
    ema_end_decay: float = 0.9999
    ema_anneal_end_step: int = 30_000
    scope: Literal["all", "all_but_local", "blocks"] = "all_but_local"
    """What the teacher has of its own: all; all but the local encoder, so that it reads the
    student's local features; or the shared blocks only."""
    copied: list[str] = field(default_factory=list)
    """Parts of the teacher, by name prefix, that are copied from the student, not averaged."""


@dataclass(frozen=True)
class GuardConfig:
    """When a run is stopped because it learns nothing any more."""

    after_steps: int = 5_000
    min_target_std: float = 0.1
    min_prediction_std: float = 0.01
    min_sample_std: float = 0.01
    """Stop when the targets at one place differ less than this from sample to sample."""
    min_relative_std: float = 0.1
    """Stop when the targets' deviation falls below this share of the untrained teacher's."""
    min_relative_rank: float = 0.1
    """Stop when the targets' effective rank falls below this share of the untrained teacher's."""
    min_predicted_share: float = 0.05
    """Stop when the predictions' deviation falls below this share of the targets': the square of
    it is about the share of the targets' variance that the student predicts."""
    max_teacher_distance: float = 0.0
    """Warn when the teacher is farther from the student than this share of the weights' norm: the
    learning rate is too high for it. 0: never."""
    patience: int = 3
    """Logging intervals in a row that must agree."""


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 5e-4
    min_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    no_decay: list[str] = field(
        default_factory=lambda: [
            "*.mask_token",
            "*.class_token",
            "*position*",
            "*.relative_bias.*",
            "*.alibi.*",
        ]
    )
    """Parameters without weight decay, by name pattern, beside those of one dimension."""
    decay_one_dimensional: bool = False
    """True: biases and norms decay too (as the fairseq originals really did)."""
    schedule: Literal["cosine", "tri_stage", "constant"] = "cosine"
    warmup_steps: int = 0
    phase_ratio: tuple[float, float, float] = (0.03, 0.9, 0.07)
    """Tri-stage: shares of warm-up, hold and decay."""
    clip_norm: float = 0.0
    """Largest global gradient norm; 0: no clipping."""


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 400_000
    batch_size: int = 256
    """Samples per optimiser step over all processes and accumulated micro-batches."""
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deterministic: bool = False
    max_loss_jump: float = 3.0
    """Leave a step out whose loss is more than this multiple of the largest of the 100 before, as
    one is whose loss or gradient is not finite; 0: none."""
    max_left_out: int = 5
    """After so many in a row the run goes back to its last good checkpoint and passes their batches
    over."""
    max_rollbacks: int = 2
    """Times that it goes back to one checkpoint before it stops."""
    activation_checkpointing: bool = False
    """Compute blocks and convolutions once more in the backward pass, in place of keeping what is
    inside them: less memory, more time."""
    compile: bool = False
    """Compile these parts with torch.compile, which takes a minute or more at the start."""


@dataclass(frozen=True)
class DataConfig:
    train: list[str] = field(default_factory=list)
    """Shards: paths, globs, brace lists, or sample://NAME for the data in the package."""
    sampling_weight: float = 1.0
    """Share of ``train.batch_size`` that a modality has in a run over several, in proportion to the
    others'."""
    batch_length: float = 0.0
    """Length per step over all processes, of audio in seconds: samples of like length then come
    together, as many as make up this length, and ``train.batch_size`` says nothing. 0:
    ``train.batch_size`` samples of any length. Only of modalities whose samples have a length
    (audio)."""
    workers: int = 2
    cache_dir: str = ""
    """Where shards from elsewhere are kept; empty: ~/.cache/selfdistill/shards."""
    cache_gb: float = 50.0
    """Most that they take there, in 10^9 bytes; those used longest ago go first."""
    timeout: float = 60.0
    """Seconds without a byte after which a connection counts as broken."""
    allow_pipe: bool = False
    """Let ``data.train`` name commands, as pipe:COMMAND; each is run by a shell."""
    skip_bad_shards: bool = False
    """Leave out shards of ``train`` that are no tar or have no sample, in place of stopping."""
    max_bad_share: float = 0.05
    """Stop when more than this share of the samples read is bad."""


PROBES = ("linear", "few_shot", "knn")
"""Of an evaluation during training."""


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 5_000
    keep: int = 3
    """The newest ones that stay; until the end the last one that a good step followed does, too."""
    keep_every: int = 0
    """Besides, those of every so many steps stay for good; 0: none."""
    best: str = ""
    """Besides, the one with the highest value of this stays, on average over labelled sets and
    modalities: a probe (linear, few_shot, knn) or a figure of the log, such as explained_variance;
    with - in front, as in -loss, the lowest. Empty: none."""


@dataclass(frozen=True)
class LogConfig:
    every: int = 100
    tensorboard: bool = True


@dataclass(frozen=True)
class TaskConfig:
    """One labelled set for the probes; labels are the ``cls`` members."""

    train: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvalConfig:
    every: int = 0
    """Steps between evaluations; the last step is always evaluated. 0: only the last."""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Labelled sets by name; the first one is the headline of the table."""
    few_shot_labels: int = 10
    few_shot_draws: int = 5
    neighbours: int = 20
    batch_size: int = 256
    pictures: bool = True
    """Draw what the encoder makes of samples, into RUN/pictures and for TensorBoard; without
    labelled sets, of the training data."""


@dataclass(frozen=True)
class CompatConfig:
    """Behaviour of the originals that we hold to be wrong, for replaying their recordings."""

    padding_in_target_statistics: bool = False
    """Padded frames take part in instance and batch norm of the targets."""
    padding_in_positions: bool = False
    """Padding is cleared before the first positional convolution only, and leaks from there."""
    padding_in_features: bool = False
    """Padding is not cleared before positional convolutions, the blocks and the decoder at all."""
    summed_class_loss: bool = False
    """The class loss is summed over the rows of a batch, so that its weight grows with them."""
    masked_only_teacher: bool = False
    """The text teacher sees the masked tokens only, padding elsewhere."""
    ema_epoch_steps: int = 0
    """BEiT's ramp of the decay: it counts from 0, and its last value stays in force to the end
    of the epoch, which has this many steps. 0: off."""
    averaged_index_buffers: bool = False
    """The teacher's integer relative-position index is averaged and truncated."""

    @property
    def padding_leaks(self) -> bool:
        """Whether what follows a sample in its batch changes its features."""
        return self.padding_in_positions or self.padding_in_features


@dataclass(frozen=True)
class RunConfig:
    modality: str
    """image, audio, text, or the dotted path of a module that declares one; empty in a run over
    several."""
    run_dir: str
    encoder: Any
    mask: Any
    input: Any
    modalities: Mapping[str, "RunConfig"] = field(default_factory=dict)
    """The resolved config of each modality of a run over several, by name."""
    strategy: Literal["dense", "visible"] = "dense"
    """dense: the student has a mask vector where it must not look (data2vec 1.0). visible: it has
    the visible tokens only, and a decoder fills in the rest (2.0)."""
    seed: int = 0
    resume: str = "auto"
    """auto: go on if run_dir holds a checkpoint, else start. never: refuse a used run_dir.
    Otherwise the path of a run or a checkpoint to go on from."""
    init_from: str = ""
    """Weights to start from: a run's folder, one of its checkpoints, a folder of transformers,
    USER/NAME on the Hub, or a file of the original authors; empty: fresh ones."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    compat: CompatConfig = field(default_factory=CompatConfig)

    def value(self, key: str) -> Any:
        """That of a dotted key."""
        return reduce(getattr, key.split("."), self)

    def parts(self) -> dict[str, "RunConfig"]:
        """The config of each modality as if it ran alone, by the modality's short name."""
        parts = self.modalities or {self.modality: self}
        return {short_name(modality): part for modality, part in parts.items()}


def dotted(sections: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested sections by dotted key; an empty section has none."""
    for key, value in sections.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


OWN_SECTIONS = ("encoder", "mask", "input")
"""Sections whose keys the modality declares."""


def short_name(modality: str) -> str:
    """What a modality is called where a run may have several: the last part of a dotted path."""
    return modality.rpartition(".")[2]
