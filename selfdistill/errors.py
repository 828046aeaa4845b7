"""What can stop a run, and the exit code each cause has on the command line.

0 finished, 2 the user's mistake, 3 stopped by the health guard, 4 stopped by the data budget,
75 preempted after saving (run the same command again to go on), 1 anything else.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager


class SelfdistillError(Exception):
    """Base of the errors that end a run with one line on stderr and no traceback."""

    exit_code = 1


class UserError(SelfdistillError):
    """A mistake in the config, the command line or the data that the user can mend."""

    exit_code = 2


class HealthError(SelfdistillError):
    """It collapsed, step after step had to be left out, or features are not finite."""

    exit_code = 3


class DataBudgetError(SelfdistillError):
    """More samples were bad than the config allows."""

    exit_code = 4


class Preempted(SelfdistillError):
    """A signal asked the run to stop; a checkpoint was saved."""

    exit_code = 75


class BadSample(Exception):
    """One sample that cannot be used; it is counted by ``reason``, logged and replaced.

    Args:
        reason: short and without numbers that differ per sample, so that equal causes count
            together, e.g. ``"undecodable audio"``.
        detail: what is particular to this sample, e.g. ``"0 samples at 16000 Hz"``.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


@contextmanager
def errors_of(modality: str, parts: Collection[str]) -> Iterator[None]:
    """Name the modality in errors, where a run has several ``parts``."""
    try:
        yield
    except SelfdistillError as error:
        if len(parts) == 1:
            raise
        whose = f"modalities.{modality}" if isinstance(error, UserError) else modality
        raise type(error)(f"{whose}: {error}") from error
