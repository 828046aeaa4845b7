"""The typed configuration of a run: dataclasses, one YAML file, and key=value overrides.

The sections ``encoder``, ``mask`` and ``input`` belong to the modality: their dataclasses live in
``selfdistill/modalities/<name>/`` and are found through the ``modality`` key. Everything else is
here. Names are the papers' and the originals' where they have one.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from selfdistill.errors import UserError


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
    loss_scale: float | str = "rsqrt_width"
    """Factor on the loss summed over the width: 1/sqrt(width), 1/width, or a number."""
    head_layers: int = 1
    head_initializer: Literal["default", "bert", "beit"] = "default"
    """default: torch's own."""


@dataclass(frozen=True)
class TeacherConfig:
    """The moving average of the student."""

    ema_decay: float = 0.999
    ema_end_decay: float = 0.9999
    ema_anneal_end_step: int = 30_000
    own_local_encoder: bool = False
    """False: the teacher reads the student's local features (audio) and the feature encoder runs
    once per batch. True: it has its own."""
    copied: list[str] = field(default_factory=list)
    """Parts of the teacher, by name prefix, that are copied from the student, not averaged."""


@dataclass(frozen=True)
class GuardConfig:
    """When a run is stopped because it learns nothing any more."""

    after_steps: int = 5_000
    min_target_std: float = 0.1
    min_prediction_std: float = 0.01
    min_relative_std: float = 0.0
    """Stop when the targets' deviation falls below this share of the untrained teacher's."""
    min_relative_rank: float = 0.0
    """Stop when the targets' effective rank falls below this share of the untrained teacher's."""
    patience: int = 3
    """Logging intervals in a row that must agree."""
    max_nonfinite: int = 5
    """Steps in a row whose loss or gradient is not finite before the run stops."""


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 5e-4
    min_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    no_decay: list[str] = field(
        default_factory=lambda: ["*.mask_token", "*.class_token", "*position*", "*.relative_bias.*"]
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


@dataclass(frozen=True)
class DataConfig:
    train: list[str] = field(default_factory=list)
    """Shards: paths, globs, brace lists, or sample://NAME for the data in the package."""
    workers: int = 2
    max_bad_share: float = 0.05
    """Stop when more than this share of the samples read is bad."""


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 5_000
    keep: int = 3


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


@dataclass(frozen=True)
class CompatConfig:
    """Behaviour of the originals that we hold to be wrong, for replaying their recordings."""

    padding_in_target_statistics: bool = False
    """Padded frames take part in instance and batch norm of the targets."""
    padding_in_positions: bool = False
    """Padding is cleared before the first positional convolution only, and leaks from there."""
    masked_only_teacher: bool = False
    """The text teacher sees the masked tokens only, padding elsewhere."""
    ema_epoch_steps: int = 0
    """BEiT's ramp of the decay: it counts from 0, and its last value stays in force to the end
    of the epoch, which has this many steps. 0: off."""
    averaged_index_buffers: bool = False
    """The teacher's integer relative-position index is averaged and truncated."""


@dataclass(frozen=True)
class RunConfig:
    modality: str
    run_dir: str
    encoder: Any
    mask: Any
    input: Any
    seed: int = 0
    resume: str = "auto"
    """auto: go on if run_dir holds a checkpoint, else start. never: refuse a used run_dir.
    Otherwise the path of a run or a checkpoint to go on from."""
    init_from: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    compat: CompatConfig = field(default_factory=CompatConfig)


class Sections(Protocol):
    """What a modality says about its sections of the config."""

    @property
    def encoder_config(self) -> type: ...

    @property
    def mask_config(self) -> type: ...

    @property
    def input_config(self) -> type: ...

    @property
    def check(self) -> Callable[[RunConfig], None]: ...


def load_config(
    path: Path, overrides: Sequence[str], sections: Callable[[str], Sections]
) -> RunConfig:
    """Defaults, then the YAML file, then ``key=value`` overrides.

    Args:
        path: a YAML file of plain values (tags and interpolation are refused).
        overrides: such as ``optim.lr=1e-3``.
        sections: finds the modality's sections by its name.

    Raises:
        UserError: no such file, an unknown key (with the nearest valid one), a wrong type, or
            values that contradict each other.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config: cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"config: {path} is not plain YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"config: {path} holds no sections")
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise UserError(f"'{override}' is no override; write key=value, such as optim.lr=1e-3")
    given = _plain(lambda: OmegaConf.merge(content, OmegaConf.from_dotlist(list(overrides))))
    return build_config(given, sections)


def build_config(given: dict[str, Any], sections: Callable[[str], Sections]) -> RunConfig:
    """The checked config of nested plain values; see ``load_config``."""
    if not isinstance(given.get("modality"), str):
        raise UserError("modality: missing; write modality: image, audio or text")
    modality = sections(given["modality"])
    own = [
        ("encoder", modality.encoder_config, field(default_factory=modality.encoder_config)),
        ("mask", modality.mask_config, field(default_factory=modality.mask_config)),
        ("input", modality.input_config, field(default_factory=modality.input_config)),
        ("run_dir", str, field(default="")),
    ]
    schema = OmegaConf.structured(make_dataclass("Config", own, bases=(RunConfig,), frozen=True))
    _refuse_interpolation(given, "")
    _refuse_unknown(given, OmegaConf.to_container(schema), "")
    _refuse_misfits(schema, given, "")
    merged = _plain(lambda: OmegaConf.merge(schema, given), to_objects=True)
    config = RunConfig(**{name: getattr(merged, name) for name in RunConfig.__dataclass_fields__})
    check(config)
    modality.check(config)
    return config


def _plain(merge: Callable[[], Any], to_objects: bool = False) -> Any:
    try:
        merged = merge()
        return OmegaConf.to_object(merged) if to_objects else OmegaConf.to_container(merged)
    except OmegaConfBaseException as error:
        first = str(error).strip().splitlines()[0]
        key = getattr(error, "full_key", None) or "config"
        raise UserError(f"{key}: {first}") from error


def _refuse_interpolation(value: Any, key: str) -> None:
    """A resolved config is saved and logged: it must not pull in the environment."""
    if isinstance(value, dict):
        for name, part in value.items():
            _refuse_interpolation(part, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            _refuse_interpolation(part, key)
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{key}: '{value}' interpolates; write the value itself")


def _refuse_unknown(given: dict[str, Any], known: Any, prefix: str) -> None:
    for name, value in given.items():
        key = f"{prefix}{name}"
        if name not in known:
            near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.0)
            raise UserError(f"{key}: no such key; the nearest valid one is {prefix}{near[0]}")
        # tasks are named by the user
        if isinstance(value, dict) and isinstance(known[name], dict) and known[name]:
            _refuse_unknown(value, known[name], f"{key}.")


def _refuse_misfits(schema: Any, given: dict[str, Any], prefix: str) -> None:
    """Name the key of a wrong type where OmegaConf does not."""
    for name, value in given.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and isinstance(schema[name], DictConfig) and schema[name]:
            _refuse_misfits(schema[name], value, f"{key}.")
            continue
        try:
            OmegaConf.merge(schema, {name: value})
        except (OmegaConfBaseException, TypeError) as error:
            first = str(error).strip().splitlines()[0]
            # of a member of a tuple OmegaConf tells placeholders only
            first = first.replace("Value '$VALUE' of type '$VALUE_TYPE'", "a member")
            full = getattr(error, "full_key", None) or key
            raise UserError(
                f"{full if full.startswith(key) else key}: {value!r} does not fit: {first}"
            ) from error


def dump_config(config: RunConfig) -> str:
    """The config as YAML that ``load_config`` reads back."""
    return yaml.safe_dump(_lists(asdict(config)), sort_keys=False, allow_unicode=True)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(part) for key, part in value.items()}
    return [_lists(part) for part in value] if isinstance(value, list | tuple) else value


def check(config: RunConfig) -> None:
    """Refuse values that are out of range or contradict each other.

    Raises:
        UserError: naming the key, the value, and what to do.
    """
    model, objective, teacher = config.model, config.objective, config.teacher
    optim, train = config.optim, config.train

    def need(fine: bool, key: str, value: object, rule: str) -> None:
        if not fine:
            raise UserError(f"{key}: {value} {rule}")

    need(bool(config.run_dir), "run_dir", "''", "is empty; say where the run is to be kept")
    for key, count in {
        "model.width": model.width,
        "model.depth": model.depth,
        "model.heads": model.heads,
        "objective.head_layers": objective.head_layers,
        "train.steps": train.steps,
        "train.batch_size": train.batch_size,
        "train.accumulate": train.accumulate,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "log.every": config.log.every,
        "guard.max_nonfinite": config.guard.max_nonfinite,
        "eval.few_shot_labels": config.eval.few_shot_labels,
        "eval.few_shot_draws": config.eval.few_shot_draws,
        "eval.neighbours": config.eval.neighbours,
        "eval.batch_size": config.eval.batch_size,
    }.items():
        need(count >= 1, key, count, "must be 1 or more")
    for key, share in {
        "model.dropout": model.dropout,
        "model.attention_dropout": model.attention_dropout,
        "model.activation_dropout": model.activation_dropout,
        "model.drop_path": model.drop_path,
        "model.layer_drop": model.layer_drop,
    }.items():
        need(0 <= share < 1, key, share, "must be at least 0 and less than 1")
    for key, number in {
        "model.norm_eps": model.norm_eps,
        "model.layer_scale": model.layer_scale,
        "objective.loss_beta": objective.loss_beta,
        "teacher.ema_anneal_end_step": teacher.ema_anneal_end_step,
        "optim.min_lr": optim.min_lr,
        "optim.eps": optim.eps,
        "optim.weight_decay": optim.weight_decay,
        "optim.warmup_steps": optim.warmup_steps,
        "optim.clip_norm": optim.clip_norm,
        "data.workers": config.data.workers,
        "data.max_bad_share": config.data.max_bad_share,
        "eval.every": config.eval.every,
        "seed": config.seed,
    }.items():
        need(number >= 0, key, number, "must not be negative")
    for key, number in {"model.mlp_ratio": model.mlp_ratio, "optim.lr": optim.lr}.items():
        need(0 < number < float("inf"), key, number, "must be finite and more than 0")
    need(
        all(0 <= beta < 1 for beta in optim.betas),
        "optim.betas",
        optim.betas,
        "must be at least 0 and less than 1",
    )
    need(
        model.width % model.heads == 0,
        "model.heads",
        model.heads,
        f"does not divide model.width {model.width}",
    )
    top = objective.average_top_k_layers
    need(
        1 <= top <= model.depth,
        "objective.average_top_k_layers",
        top,
        f"must be between 1 and model.depth {model.depth}",
    )
    need(
        all(0 <= layer < model.depth for layer in objective.target_layers),
        "objective.target_layers",
        objective.target_layers,
        f"must lie between 0 and {model.depth - 1}",
    )
    need(
        not isinstance(objective.loss_scale, str)
        or objective.loss_scale in ("rsqrt_width", "mean"),
        "objective.loss_scale",
        objective.loss_scale,
        "must be rsqrt_width, mean or a number",
    )
    for key, decay in {
        "teacher.ema_decay": teacher.ema_decay,
        "teacher.ema_end_decay": teacher.ema_end_decay,
    }.items():
        need(0 <= decay <= 1, key, decay, "must be between 0 and 1")
    need(
        optim.warmup_steps <= train.steps,
        "optim.warmup_steps",
        optim.warmup_steps,
        f"is more than train.steps {train.steps}",
    )
    need(
        train.batch_size % train.accumulate == 0,
        "train.batch_size",
        train.batch_size,
        f"is not a multiple of train.accumulate {train.accumulate}",
    )
