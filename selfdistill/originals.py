"""Checkpoints of the original implementations: their config and weights as ours."""

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.config_files.load import build_config
from selfdistill.errors import UserError
from selfdistill.modalities.base import Modality, OriginalFormat, load_modality, modality_names
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.objective.state import of_predictor, of_student, of_teacher
from selfdistill.renaming import to_ours


def recognise(state: Mapping[str, Tensor]) -> tuple[Modality, OriginalFormat]:
    """Whose checkpoint this is, told by its parameter names.

    Raises:
        UserError: nobody's that we know.
    """
    for name in modality_names():
        modality = load_modality(name)
        for original in modality.originals:
            if original.marker in state:
                return modality, original
    raise UserError(
        "original checkpoint: its parameter names are none of data2vec's "
        f"(the first is '{next(iter(state), 'missing')}')"
    )


def original_config(
    modality: Modality,
    original: OriginalFormat,
    settings: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, Any]],
    run_dir: str = "unused",
) -> RunConfig:
    """The run config that stands for an original's settings.

    Args:
        modality, original: as ``recognise`` tells them.
        settings: the original's model config.
        extra: sections whose values are added to or replace the derived ones.
        run_dir: of the config.

    Raises:
        UserError: the settings ask for what the package cannot express.
    """
    sections = original.sections(settings)
    for section, values in extra.items():
        sections[section] = {**sections.get(section, {}), **values}
    sections |= {"modality": modality.name, "run_dir": run_dir}
    return build_config(sections, load_modality)


def load_original(
    model: Data2Vec, state: Mapping[str, Tensor], teacher_state: Mapping[str, Tensor] | None = None
) -> bool:
    """Load an original's weights into student, predictor and teacher.

    Args:
        model: of the matching config, over one modality.
        state: the student, by the original's names.
        teacher_state: the teacher, by the original's names relative to what it averages; None:
            the teacher starts as a copy of the student.

    Returns:
        Whether the predictor was loaded: an encoder alone leaves it as it is.

    Raises:
        UserError: names or shapes that do not fit, each named.
    """
    modality, original = recognise(state)
    ours = model.state_dict(keep_vars=True)
    predictor = of_predictor(ours, modality.name)
    has_predictor = not predictor.keys().isdisjoint(to_ours(state, original.names)[0])
    wanted = trained_part if has_predictor else of_student
    _load(wanted(ours, modality.name), state, original)
    model.update_teacher(decay=0.0)
    if teacher_state is not None:
        prefix = teacher_prefix(teacher_state, original)
        whole = {prefix + name: value for name, value in teacher_state.items()}
        # a part that the original's teacher does not have follows the student's
        _load(of_teacher(ours, modality.name), {**state, **whole}, original, subset=True)
    return has_predictor


def trained_part(state: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """Student and predictor of one modality, by the names of ``OriginalFormat.names``."""
    return {**of_student(state, modality), **of_predictor(state, modality)}


def teacher_prefix(teacher: Mapping[str, Tensor], original: OriginalFormat) -> str:
    """What the names of an original's teacher lack in front to be names of its student.

    Raises:
        UserError: with no prefix do they become such names.
    """
    unknown: list[str] = []
    for prefix in original.teacher_prefixes:
        _, unknown = to_ours({prefix + n: t for n, t in teacher.items()}, original.names)
        unknown = [n for n in unknown if not any(fnmatch(n, p) for p in original.ignored)]
        if not unknown:
            return prefix
    raise UserError(
        "original checkpoint: its teacher has parameters that its student has not: "
        f"{', '.join(sorted(unknown)[:5])}"
    )


def _load(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    original: OriginalFormat,
    subset: bool = False,
) -> None:
    renamed, unknown = to_ours(theirs, original.names)
    unknown = [n for n in unknown if not any(fnmatch(n, p) for p in original.ignored)]
    missing = sorted(set(ours) - set(renamed))
    extra = [] if subset else sorted(set(renamed) - set(ours))
    if missing or extra or unknown:
        raise UserError(
            f"original checkpoint: parameters do not fit the model: missing {missing}, "
            f"not in the model {extra}, unknown {unknown}"
        )
    for name, tensor in ours.items():
        value = renamed[name]
        if (1, *value.shape) == tensor.shape:  # as older files have the scales of attention biases
            value = value[None]
        if tensor.shape != value.shape:
            raise UserError(
                f"original checkpoint: {name} has the shape {tuple(value.shape)}, "
                f"the model needs {tuple(tensor.shape)}"
            )
        tensor.data.copy_(value)
