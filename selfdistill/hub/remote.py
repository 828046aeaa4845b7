"""To and from huggingface.co (or whatever HF_ENDPOINT names), with the user's own token."""

import re
from functools import cache
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from selfdistill.errors import SelfdistillError, UserError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SAFE = ["*.json", "*.safetensors", "merges.txt", "README.md"]
PICKLED = ["pytorch_model*.bin"]
SILENCE = 60.0
"""Seconds without a byte, either way, after which a request is given up."""


def is_repository_name(text: str) -> bool:
    return REPOSITORY.fullmatch(text) is not None


def download(name: str, key: str) -> Path:
    """The local copy of a repository's config and weights; fetched if it is not there.

    Args:
        name: USER/NAME.
        key: the config's or the command's name of it, for the error messages.

    Raises:
        UserError: there is no such repository, or it cannot be reached.
    """
    _limit_silence()
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=SAFE))
        if not any(folder.glob("*.safetensors")):
            huggingface_hub.snapshot_download(name, allow_patterns=[*SAFE, *PICKLED])
    except Exception as error:
        raise UserError(
            f"{key}: {name} is not here, and cannot be downloaded: {_why(error)}"
        ) from error
    return folder


def check_push(name: str) -> None:
    """Refuse to begin what would end in an upload that cannot be.

    Args:
        name: USER/NAME.

    Raises:
        UserError: there is no token, or ``name`` is no name of a repository.
    """
    if not is_repository_name(name):
        raise UserError(f"--push: {name} is no name of a repository; expected USER/NAME")
    if huggingface_hub.get_token() is None:
        raise UserError(
            "--push: no token; log in with `hf auth login`, or set HF_TOKEN to a token that may "
            "write"
        )


def push(folder: Path, name: str) -> str:
    """Upload a folder as a model repository, which is made if it is not there.

    Returns:
        The commit's address.

    Raises:
        SelfdistillError: it could not be uploaded; the folder stays.
    """
    _limit_silence()
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(name, exist_ok=True)
        return api.upload_folder(repo_id=name, folder_path=folder).commit_url
    except Exception as error:
        raise SelfdistillError(
            f"--push: cannot upload to {name}: {_why(error)}; {folder} is complete"
        ) from error


@cache
def _limit_silence() -> None:
    """Give up what is never answered: huggingface_hub sets no limit of its own.

    Its clients stay as they are otherwise. Before 1.0 it has requests, and no such clients.
    """
    if not hasattr(huggingface_hub, "set_client_factory"):
        return
    client = huggingface_hub.get_session()
    kind, hooks = type(client), client.event_hooks
    limited = {**hooks, "request": [*hooks["request"], _limit]}
    huggingface_hub.set_client_factory(
        lambda: kind(event_hooks=limited, follow_redirects=True, timeout=None)
    )


def _limit(request: Any) -> None:
    # the request's, because some calls say timeout=None themselves; where one has a limit it stays
    limits = request.extensions["timeout"]
    request.extensions["timeout"] = {
        what: SILENCE if limit is None else limit for what, limit in limits.items()
    }


def _why(error: BaseException) -> str:
    # huggingface_hub lets the errors of its HTTP library through, and that library differs
    # between its versions
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # what came before it looked into its cache
    if isinstance(error, GatedRepoError):
        return "one has to agree to its terms first; do so on its page"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the Hub has no such repository, or does not show it to this token; check the name "
            "and the token"
        )
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError):
        return _answer(error)
    if isinstance(error, JSONDecodeError | UnicodeDecodeError):
        return _no_hub("is no JSON")
    if isinstance(error, KeyError):
        return _no_hub(f"lacks {error}")
    # with requests, whose errors are OSErrors, the context is what the connection died of;
    # elsewhere it is what its library tried before
    while inner := error.__cause__ or (error.__context__ if isinstance(error, OSError) else None):
        error = inner
    return " ".join(str(error).split()) or type(error).__name__


def _answer(error: HfHubHTTPError) -> str:
    code = error.response.status_code if error.response is not None else 0
    if code == 401:
        return "the Hub does not take the token; log in with `hf auth login`, or mend HF_TOKEN"
    if code == 403 and not error.server_message:
        return "the Hub answers 403 and does not say why; take a token that may do this"
    said = " ".join((error.server_message or str(error)).split())
    return f"the Hub answers {code} ({said})"


def _no_hub(fault: str) -> str:
    return (
        f"what answers at {ENDPOINT} is no Hub, as its answer {fault}; "
        "check HF_ENDPOINT, the proxy, and whether the network wants a login"
    )
