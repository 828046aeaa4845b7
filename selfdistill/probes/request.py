"""What ``selfdistill probe`` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfdistill.errors import UserError

PROBES = ("linear", "few-shot", "knn", "attentive")
NEIGHBOURS = (1, 5, 20, 100)
FEW_SHOT_DRAWS = 5
CACHE_FOLDER = Path("~/.cache/selfdistill/features")


@dataclass(frozen=True)
class Request:
    """What to probe, and how.

    Attributes:
        model: what ``load_pretrained`` takes.
        data: one labelled set; a fifth of each class is the test split.
        train, test: two of them, in its place. Neither: those of the run's config.
        labels: a file of labels; None: the ``cls`` members.
        probes: some of ``PROBES``.
        neighbours: of the nearest-neighbour probes; None: ``NEIGHBOURS``, where there are so many.
        few_shot_labels: of each class.
        per_token: probe tokens by the labels in the ``labels.json`` members (linear, knn).
        ctc: in place of ``probes``, spell the transcripts in the ``txt`` members.
        baselines: also probe the raw input and the untrained encoder.
        cache: where features are kept; see ``FeatureCache``.
        seed: of splits and draws; fresh encoders have the run's.
    """

    model: str
    data: Sequence[str] = ()
    train: Sequence[str] = ()
    test: Sequence[str] = ()
    labels: Path | None = None
    probes: Sequence[str] = PROBES
    neighbours: Sequence[int] | None = None
    few_shot_labels: int = 10
    per_token: bool = False
    ctc: bool = False
    baselines: bool = True
    cache: Path = CACHE_FOLDER
    cache_gb: float = 20.0
    batch_size: int = 64
    weights: Literal["student", "teacher"] = "student"
    modality: str = ""
    device: str | None = None
    seed: int = 0


def check_request(request: Request) -> None:
    """Refuse (``UserError``) what cannot work, before anything is read."""
    if bool(request.train) != bool(request.test):
        given, other = ("--train", "--test") if request.train else ("--test", "--train")
        raise UserError(f"{given}: give {other} as well, or one set as DATA")
    if request.data and request.train:
        raise UserError("DATA: give either DATA, or --train and --test")
    if request.ctc and request.labels:
        raise UserError("--labels: --ctc takes its transcripts from the .txt members")
    if request.per_token and (request.labels or request.ctc):
        option = "--labels" if request.labels else "--ctc"
        raise UserError(f"{option}: --per token takes its labels from the .labels.json members")
    if request.per_token and not {"linear", "knn"} & set(request.probes):
        raise UserError("--probes: tokens (--per token) are probed by linear and knn only")
    if request.batch_size < 1:
        raise UserError(f"--batch-size: {request.batch_size} must be 1 or more")
    if not request.cache_gb > 0:
        raise UserError(f"--cache-gb: {request.cache_gb:g} must be above 0")
    if request.few_shot_labels < 1:
        raise UserError(f"--few-shot: {request.few_shot_labels} must be 1 or more")
    for k in request.neighbours or ():
        if k < 1:
            raise UserError(f"--neighbours: {k} must be 1 or more")


def probes_of(words: str) -> list[str]:
    """The probes that ``--probes`` names, in the order of ``PROBES``.

    Raises:
        UserError: there is no such probe.
    """
    given = [word.strip() for word in words.split(",")]
    for word in given:
        if word not in PROBES:
            raise UserError(f"--probes: there is no '{word}'; choose from {', '.join(PROBES)}")
    return [probe for probe in PROBES if probe in given]


def numbers_of(words: str) -> list[int]:
    """The numbers that ``--neighbours`` names, ascending; ``UserError`` where they are none."""
    try:
        return sorted({int(word) for word in words.split(",")})
    except ValueError as error:
        raise UserError(f"--neighbours: '{words}' is no list such as 1,5,20") from error
