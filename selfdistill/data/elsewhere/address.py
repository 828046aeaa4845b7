"""Where a file is that is not on this machine, and how it may be reached."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from selfdistill.config import DataConfig
from selfdistill.redaction import PIPE, command_name, without_secrets

CACHE_FOLDER = Path("~/.cache/selfdistill/shards")
WEB = ("http", "https")


@dataclass(frozen=True)
class Access:
    """How files elsewhere are reached and kept.

    Attributes:
        cache_folder: where shards are kept.
        cache_bytes: most that they take there.
        timeout: seconds without a byte after which a connection counts as broken.
        allow_pipe: let names be commands, and hold what a shell would take for more than a name.
    """

    cache_folder: Path
    cache_bytes: int
    timeout: float
    allow_pipe: bool

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        """What the ``data`` section of a config says."""
        folder = Path(config.cache_dir) if config.cache_dir else CACHE_FOLDER
        return cls(
            folder.expanduser(), int(config.cache_gb * 1e9), config.timeout, config.allow_pipe
        )


@dataclass(frozen=True)
class Remote:
    """One file elsewhere. In text it stands without the secrets that its URL may hold.

    Attributes:
        url: as it was named; ``pipe:COMMAND`` for what a command writes to its standard output.
    """

    url: str = field(repr=False)

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0].lower()

    @property
    def is_command(self) -> bool:
        return self.url.startswith(PIPE)

    @property
    def name(self) -> str:
        """The file's name, or one that stands for the command."""
        if self.is_command:
            return command_name(self.url)
        path = self.url.partition("?")[0] if self.scheme in WEB else self.url
        return path.rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        return without_secrets(self.url)

    def beside(self, suffix: str) -> "Remote":
        """The file of the same name with ``suffix`` behind it."""
        path, mark, query = self.url.partition("?" if self.scheme in WEB else "\0")
        return Remote(path + suffix + mark + query)

    def fingerprint(self, *further: str) -> str:
        """Hexadecimal sum of the URL and of what else tells one state of the file from others."""
        return hashlib.sha256("\n".join((self.url, *further)).encode()).hexdigest()
