"""Where an encoder is run."""

import torch

from selfdistill.errors import UserError


def choose_device(given: str | None) -> torch.device:
    """The device that ``--device`` names; None: a GPU if there is one.

    Raises:
        UserError: it cannot be used.
    """
    name = given or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device: '{name}' cannot be used ({reason})") from error
    return torch.device(name)
