"""What the figures of a run's log say, and what to try when they leave their band."""

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True)
class Figure:
    """A figure of the log, in plain words.

    Attributes:
        title: of its curve.
        meaning: one sentence.
        advice: what to try when it leaves its band; empty: it has none.
        form: how a value is written; one that ends in % is a share.
        logarithmic: whether its curve is.
    """

    title: str
    meaning: str
    advice: str = ""
    form: str = ".3g"
    logarithmic: bool = False

    @property
    def is_share(self) -> bool:
        return self.form.endswith("%")

    @property
    def name(self) -> str:
        """The title inside a sentence."""
        return self.title[:1].lower() + self.title[1:]

    def written(self, value: float) -> str:
        """A value as text."""
        if not isfinite(value):
            return "none"
        return format(value, self.form).replace("%", " %")


COLLAPSE = (
    "Try a slower teacher (teacher.ema_decay closer to 1), a smaller optim.lr, longer "
    "optim.warmup_steps, layer or instance norm in objective.layer_norms, or a smaller mask."
)
"""What to try against a collapse."""

FIGURES = {
    "loss": Figure(
        "Loss",
        "Says little by itself: the targets change with the teacher, so it may rise while the "
        "encoder gets better, and fall while it collapses.",
    ),
    "target_std": Figure(
        "Deviation of the targets",
        "How much what the teacher sets as a target differs from token to token; near 0 all "
        "tokens have the same target, and nothing can be learned.",
        COLLAPSE,
    ),
    "prediction_std": Figure(
        "Deviation of the predictions",
        "How much the student's answers differ from token to token; near 0 it gives the mean of "
        "the targets everywhere.",
        "Wait if the learning rate still warms up; then try a higher optim.lr, a smaller mask, or "
        "more steps; if the targets' deviation falls as well, a slower teacher.",
    ),
    "sample_std": Figure(
        "Deviation between samples",
        "How much the targets at one place differ from sample to sample; near 0 they say where a "
        "token is, but nothing of what is there.",
        "See with `selfdistill inspect CONFIG` whether the samples differ at all; else it is a "
        "collapse: try a slower teacher or a smaller optim.lr.",
    ),
    "target_rank": Figure(
        "Effective rank of the targets",
        "Over how many directions the targets are spread; a fall to a few means that most "
        "channels say the same.",
        COLLAPSE,
        ".1f",
    ),
    "prediction_rank": Figure(
        "Effective rank of the predictions",
        "Over how many directions the predictions are spread; it follows that of the targets.",
        "",
        ".1f",
    ),
    "target_slope": Figure(
        "Slope of the targets' spectrum",
        "How fast the spread falls from direction to direction, as a power (alpha-ReQ): well above "
        "1 a few directions hold nearly all, far below 1 it is close to noise.",
    ),
    "target_cosine": Figure(
        "Cosine between targets",
        "How alike the directions of two targets are on average; at 1 all point the same way.",
    ),
    "prediction_cosine": Figure(
        "Cosine between predictions",
        "How alike the directions of two predictions are on average; at 1 all point the same way.",
    ),
    "explained_variance": Figure(
        "Explained share of the targets",
        "How much of what differs between targets the student predicts; unlike the loss it can be "
        "compared over time, though the targets change.",
        "Below 0 the targets' mean would be a better answer: try a smaller optim.lr, or longer "
        "optim.warmup_steps.",
        ".1%",
    ),
    "teacher_distance": Figure(
        "Teacher's distance from the student",
        "How far the moving average lags behind the student, relative to the weights' norm; at 0 "
        "the student predicts itself, which is how collapses begin.",
        "Near 0: raise teacher.ema_decay, which should be close to 1, and below it. Far: a smaller "
        "optim.lr, longer optim.warmup_steps, or a faster teacher.",
        ".2g",
        logarithmic=True,
    ),
    "teacher_norm": Figure(
        "Length of the teacher's vectors",
        "Behind each block; one that grows without end, or goes to 0, shows where it breaks.",
    ),
    "masked_share": Figure(
        "Masked share",
        "The share of the tokens that the student must predict; it should stay where the mask's "
        "settings put it.",
        "See the masks with `selfdistill inspect CONFIG --out masks.html`, then set mask.*.",
        ".1%",
    ),
    "grad_norm": Figure(
        "Norm of the gradient",
        "The gradient's length before clipping; single peaks do no harm, a lasting rise comes "
        "before the loss breaks.",
        "Try a smaller optim.lr, longer optim.warmup_steps, or a limit in optim.clip_norm.",
        logarithmic=True,
    ),
    "lr": Figure(
        "Learning rate", "As the schedule sets it: up, then down to optim.min_lr.", "", ".3g"
    ),
    "ema_decay": Figure(
        "Decay of the teacher's average",
        "The share of itself that the teacher keeps at each step; closer to 1 is slower and "
        "steadier.",
        "Raise teacher.ema_decay: below 0.9 the teacher follows the student within ten steps.",
        ".6g",
    ),
    "samples_per_second": Figure(
        "Samples per second",
        "How fast it trains, over all processes.",
        "If the wait for data rises at the same time, raise data.workers; else see what else runs "
        "on the machine.",
        ",.4g",
    ),
    "data_wait": Figure(
        "Wait for data",
        "The share of the time in which the model waits for the loader.",
        "Raise data.workers, store smaller pictures or clips (`selfdistill pack`), and see what "
        "costs most with `selfdistill bench data CONFIG`.",
        ".1%",
    ),
    "compilations": Figure(
        "Compiled graphs",
        "How many variants of blocks and convolutions were compiled since the start, with "
        "train.compile; it stops rising within the first hundred steps.",
        "If it goes on rising, training waits for the compiler: train.compile=false.",
        ",.0f",
    ),
    "bad_samples": Figure(
        "Bad samples",
        "How many samples could not be used and were replaced, since the start.",
        "The run's log names each cause; `selfdistill inspect` counts them; pack the data again.",
        ",.0f",
    ),
    "retries": Figure(
        "Connections tried again",
        "How many broken connections to shards elsewhere were made once more, since the start.",
        "",
        ",.0f",
    ),
    "left_out_steps": Figure(
        "Steps left out",
        "How many steps were left out since the start, because loss or gradient was not finite or "
        "the loss jumped.",
        "See left_out.jsonl for their samples; try a smaller optim.lr, a limit in optim.clip_norm, "
        "or train.precision=bf16 or fp32.",
        ",.0f",
    ),
    "rollbacks": Figure(
        "Times it went back",
        "How often the run went back to a checkpoint, because too many steps in a row were left "
        "out, and passed over the batches that followed.",
        "Look at the samples in left_out.jsonl; try a smaller optim.lr or a limit in "
        "optim.clip_norm.",
        ",.0f",
    ),
}
"""By name in the log, in the order in which they are shown; other names are shown after them."""


def family_of(key: str) -> tuple[str, str]:
    """The name that figures of several layers or parts share, and which one it is.

    ``teacher_norm_03`` gives ("teacher_norm", "03"), ``grad_norm_blocks`` ("grad_norm", "blocks"),
    ``other/part`` ("other", "part"); one that stands alone has an empty second part.
    """
    for known in FIGURES:
        if key.startswith(f"{known}_"):
            return known, key.removeprefix(f"{known}_")
    family, _, member = key.partition("/")
    return family, member


def figure_of(key: str) -> Figure:
    """What is said of a figure; of an unknown one its name only."""
    family, _ = family_of(key)
    known = FIGURES.get(key) or FIGURES.get(family)
    return known or Figure(family.replace("_", " ").capitalize(), "")
