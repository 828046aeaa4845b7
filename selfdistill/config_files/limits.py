"""Values of the config that are out of range or contradict each other."""

from collections.abc import Iterable
from math import inf, isclose

from selfdistill.config import PROBES, RunConfig
from selfdistill.errors import UserError
from selfdistill.health.figures import FIGURES

AT_LEAST_ONE = (
    "model.width",
    "model.depth",
    "model.heads",
    "mask.num_masks",
    "objective.head_layers",
    "decoder.width",
    "decoder.layers",
    "decoder.kernel",
    "decoder.groups",
    "decoder.projection_layers",
    "guard.patience",
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.max_left_out",
    "checkpoint.every",
    "checkpoint.keep",
    "log.every",
    "eval.few_shot_labels",
    "eval.few_shot_draws",
    "eval.neighbours",
    "eval.batch_size",
)
NOT_NEGATIVE = (
    "encoder.prenet_depth",
    "model.norm_eps",
    "model.layer_scale",
    "objective.loss_beta",
    "objective.cls_loss",
    "decoder.mask_noise_std",
    "teacher.ema_anneal_end_step",
    "guard.after_steps",
    "guard.min_target_std",
    "guard.min_prediction_std",
    "guard.min_sample_std",
    "guard.max_teacher_distance",
    "guard.min_relative_std",
    "guard.min_relative_rank",
    "guard.min_predicted_share",
    "train.max_loss_jump",
    "train.max_rollbacks",
    "optim.min_lr",
    "optim.eps",
    "optim.weight_decay",
    "optim.warmup_steps",
    "optim.clip_norm",
    "data.workers",
    "data.batch_length",
    "checkpoint.keep_every",
    "compat.ema_epoch_steps",
    "eval.every",
)
POSITIVE = (
    "model.mlp_ratio",
    "objective.loss_weight",
    "decoder.projection_ratio",
    "data.sampling_weight",
    "data.cache_gb",
    "data.timeout",
    "optim.lr",
)
SHARES = (
    "model.dropout",
    "model.attention_dropout",
    "model.activation_dropout",
    "model.drop_path",
    "model.layer_drop",
    "decoder.input_dropout",
)
RATED = [key for key in FIGURES if key != "teacher_norm"]
"""Figures that the log has under their own name; that one it has block by block."""
UP_TO_ONE = ("teacher.ema_decay", "teacher.ema_end_decay", "data.max_bad_share")


def check(config: RunConfig) -> None:
    """Refuse what cannot work.

    Raises:
        UserError: naming the key, the value, and what to do.
    """
    if not config.run_dir:
        raise UserError("run_dir: is empty; say where the run is to be kept")
    for keys, fine, rule in (
        (AT_LEAST_ONE, lambda n: n >= 1, "must be 1 or more"),
        (NOT_NEGATIVE, lambda n: 0 <= n < inf, "must be finite and not negative"),
        (POSITIVE, lambda n: 0 < n < inf, "must be finite and more than 0"),
        (SHARES, lambda n: 0 <= n < 1, "must be at least 0 and less than 1"),
        (UP_TO_ONE, lambda n: 0 <= n <= 1, "must be between 0 and 1"),
        (("seed",), lambda n: 0 <= n < 2**63, "must be at least 0 and less than 2^63"),
        (("optim.betas",), lambda b: 0 <= min(b) <= max(b) < 1, "must be at least 0, below 1"),
    ):
        for key in keys:
            _need(fine(config.value(key)), config, key, rule)
    _check_contradictions(config)
    if config.strategy == "visible":
        _check_decoder(config)


def check_together(parts: Iterable[RunConfig]) -> None:
    """Refuse what no modality of a run to begin makes work; raises as ``check`` does."""
    every = list(parts)
    best = every[0].checkpoint.best
    if best.removeprefix("-") in PROBES and not any(part.eval.tasks for part in every):
        raise UserError(
            f"checkpoint.best: {best} needs a labelled set to be measured on; add one to "
            "eval.tasks, or choose a figure of the log"
        )


def _check_contradictions(config: RunConfig) -> None:
    model, objective, train = config.model, config.objective, config.train
    _need(
        model.width % model.heads == 0,
        config,
        "model.heads",
        f"does not divide model.width {model.width}",
    )
    _need(
        bool(objective.target_layers) or 1 <= objective.average_top_k_layers <= model.depth,
        config,
        "objective.average_top_k_layers",
        f"must be between 1 and model.depth {model.depth}",
    )
    _need(
        all(0 <= layer < model.depth for layer in objective.target_layers),
        config,
        "objective.target_layers",
        f"must lie between 0 and {model.depth - 1}",
    )
    _need(
        len(set(objective.target_layers)) == len(objective.target_layers),
        config,
        "objective.target_layers",
        "names a layer twice",
    )
    scale = objective.loss_scale
    _need(
        scale in ("rsqrt_width", "mean") if isinstance(scale, str) else 0 < scale < inf,
        config,
        "objective.loss_scale",
        "must be rsqrt_width, mean, or a finite number above 0",
    )
    _need(
        model.mlp_width >= 1,
        config,
        "model.mlp_ratio",
        f"leaves nothing of model.width {model.width} inside the feed-forward network; raise it",
    )
    _need(
        objective.cls_loss == 0 or getattr(config.encoder, "num_extra_tokens", 0) >= 1,
        config,
        "objective.cls_loss",
        "needs a class token; choose 0, or encoder.num_extra_tokens of 1 or more where there is "
        "such a key",
    )
    _need(
        config.data.batch_length > 0 or train.batch_size % train.accumulate == 0,
        config,
        "train.batch_size",
        f"is not a multiple of train.accumulate {train.accumulate}",
    )
    _check_schedule(config)
    _check_best(config)


def _check_schedule(config: RunConfig) -> None:
    optim, steps = config.optim, config.train.steps
    if optim.schedule == "tri_stage":
        _need(
            optim.warmup_steps == 0,
            config,
            "optim.warmup_steps",
            "has no effect on tri_stage, whose warm-up is the first number of optim.phase_ratio; "
            "set it to 0",
        )
        _need(
            min(optim.phase_ratio) >= 0 and isclose(sum(optim.phase_ratio), 1),
            config,
            "optim.phase_ratio",
            "must be three shares that add up to 1",
        )
        return
    _need(
        optim.warmup_steps < steps,
        config,
        "optim.warmup_steps",
        f"must be less than train.steps {steps}; lower it or train longer",
    )
    _need(
        optim.min_lr <= optim.lr,
        config,
        "optim.min_lr",
        f"must not be more than optim.lr {optim.lr}; lower it",
    )


def _check_best(config: RunConfig) -> None:
    best, every = config.checkpoint.best.removeprefix("-"), config.checkpoint.every
    if best in PROBES:
        evaluations = config.eval.every
        _need(
            evaluations > 0 and evaluations % every == 0,
            config,
            "checkpoint.best",
            f"needs a checkpoint at each evaluation, but eval.every {evaluations} is no multiple "
            f"of checkpoint.every {every}",
        )
    elif best:
        names = ", ".join([*PROBES, *RATED])
        _need(best in RATED, config, "checkpoint.best", f"is none of {names}")
        _need(
            every % config.log.every == 0,
            config,
            "checkpoint.best",
            f"needs a line of the log at each checkpoint, but checkpoint.every {every} is no "
            f"multiple of log.every {config.log.every}",
        )


def _check_decoder(config: RunConfig) -> None:
    groups = config.decoder.groups
    _need(
        config.decoder.projection_width >= 1,
        config,
        "decoder.projection_ratio",
        f"leaves nothing of decoder.width {config.decoder.width}; raise it",
    )
    for key in ("model.width", "decoder.width"):
        _need(
            config.value(key) % groups == 0,
            config,
            "decoder.groups",
            f"does not divide {key} {config.value(key)}",
        )


def _need(fine: bool, config: RunConfig, key: str, rule: str) -> None:
    if not fine:
        raise UserError(f"{key}: {config.value(key)} {rule}")
