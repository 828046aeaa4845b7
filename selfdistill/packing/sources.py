"""Sources named on the command line, as entries: folders, files, manifests."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from selfdistill.errors import UserError
from selfdistill.folders import files_below
from selfdistill.packing.declaration import Packing
from selfdistill.packing.entries import Entry

_KEY = "SOURCE"


class Sources:
    """The files that sources stand for.

    A folder stands for the files in it and below (``files_below``) whose names end as the
    modality's do; the folder written to is left out.

    Args:
        names: of the command line.
        packing: the modality's.
        out: the folder that is written to.

    Attributes:
        ignored: files in folders that were left out, by the end of their name.

    Raises:
        UserError: a source is not there, is of no use, or lies in ``out``.
    """

    def __init__(self, names: Sequence[str], packing: Packing, out: Path) -> None:
        self.paths = [Path(name) for name in names]
        self.packing = packing
        self.out = out.resolve()
        self.ignored: Counter[str] = Counter()
        for path in self.paths:
            try:
                path.stat()
            except FileNotFoundError as error:
                raise UserError(f"{_KEY}: there is no '{path}'; check the path") from error
            except OSError as error:
                raise UserError(f"{_KEY}: cannot read '{path}': {error.strerror}") from error
            if path.resolve().is_relative_to(self.out):
                raise UserError(
                    f"{_KEY}: '{path}' lies in --out '{out}'; write the shards elsewhere"
                )
            if path.is_file() and not self._is_taken(path.name) and not self._manifest(path):
                raise UserError(f"{_KEY}: '{path}' is nothing that can be packed; {self.taken()}")

    def taken(self) -> str:
        """What can be packed, in words."""
        words = f"give folders of {', '.join(self.packing.suffixes)}, or such files"
        if self.packing.manifests:
            words += f", or manifests ({', '.join(self.packing.manifests)})"
        return words

    def entries(self) -> Iterator[Entry]:
        """In the order of the sources.

        Raises:
            UserError: a folder or a manifest cannot be read.
        """
        for path in self.paths:
            if path.is_dir():
                yield from self._inside(path)
            elif manifest := self._manifest(path):
                yield from self.packing.manifests[manifest](path)
            else:
                yield Entry(str(path), path.name)

    def _inside(self, folder: Path) -> Iterator[Entry]:
        for path, name in files_below(folder, _KEY, self.out):
            if self._is_taken(name):
                yield Entry(path, name)
            else:
                self.ignored[Path(name).suffix.lower() or Path(name).name] += 1

    def _is_taken(self, name: str) -> bool:
        return name.lower().endswith(tuple(self.packing.suffixes))

    def _manifest(self, path: Path) -> str:
        suffix = path.suffix.lower()
        return suffix if suffix in self.packing.manifests else ""
