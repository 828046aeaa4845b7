"""Pictures that lie in the folder of a run, inside the page."""

from base64 import b64encode
from collections.abc import Iterator
from html import escape
from pathlib import Path

from selfdistill.run_folder.layout import PICTURES

_KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}
_MOST_BYTES = 24_000_000
"""Of all pictures of a page, before they become text."""


def pictures(run: Path) -> str:
    """Each picture of ``RUN/pictures``, at any depth, under its name; empty where there are none.

    An SVG is shown as an image, in which no script runs. What would make the page too large is
    named only.
    """
    shown, left_out, size = [], [], 0
    for path in _found(run / PICTURES):
        name = str(path.relative_to(run / PICTURES).with_suffix(""))
        try:
            content = path.read_bytes() if size + path.stat().st_size <= _MOST_BYTES else b""
        except OSError:  # a run that goes on replaced it
            continue
        if not content:
            left_out.append(str(path.relative_to(run)))
            continue
        size += len(content)
        caption = escape(name.replace("_", " ").replace("/", ": "))
        data = b64encode(content).decode()
        shown.append(
            f'<figure class="card"><figcaption>{caption}</figcaption>\n<img alt="{caption}" '
            f'src="data:{_KINDS[path.suffix.lower()]};base64,{data}"></figure>\n'
        )
    rest = f'<p class="faint">Left out: {escape(", ".join(left_out))}</p>\n' if left_out else ""
    grid = f'<div class="pictures">\n{"".join(shown)}</div>\n' if shown else ""
    return grid + rest


def _found(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in _KINDS and path.is_file():
                yield path
