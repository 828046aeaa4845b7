"""Whose the tensors of a ``Data2Vec``'s state are, by names that are the same in every run."""

from collections.abc import Mapping

from torch import Tensor


def of_student(state: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """One modality's student, by the names in ``Backbone``: ``encoder...`` and ``trunk...``.

    Args:
        state: of a ``Data2Vec``.
        modality: its short name.
    """
    return _backbone(state, "student.", modality)


def of_teacher(state: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """The same of the teacher, without what it has not of its own."""
    return _backbone(state, "teacher.", modality)


def of_predictor(state: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """What makes predictions of the student's output: ``head...`` or ``decoder...``."""
    return _below(state, f"predictors.{modality}.")


def _backbone(state: Mapping[str, Tensor], whose: str, modality: str) -> dict[str, Tensor]:
    encoder = _below(state, f"{whose}encoders.{modality}.")
    trunk = _below(state, f"{whose}trunk.")
    return {
        **{f"encoder.{name}": tensor for name, tensor in encoder.items()},
        **{f"trunk.{name}": tensor for name, tensor in trunk.items()},
    }


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
