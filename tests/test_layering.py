"""Modules import as the map of the code says: from above or beside themselves, without cycles."""

import ast
import re
from fnmatch import filter as matching
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import selfdistill

ROOT = Path(selfdistill.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
}
PARTS = sorted({name.split(".")[0] for name in FILES} - {"__init__", "__main__"})
MAP = Path(__file__).resolve().parents[1] / "selfdistill" / "README.md"


def places() -> dict[str, int]:
    """The number of the map's entry for each module and package at the top, from above."""
    tree = MAP.read_text(encoding="utf-8").split("```")[1]
    found = {"__init__": -1}
    for number, entry in enumerate(re.split(r"\n  (?=\w)", tree)[1:]):
        named = re.findall(r"([\w*]+)(?:\.py|/)", entry)
        # of a package alone its files follow
        for pattern in named[:1] if entry.startswith(f"{named[0]}/") else named:
            parts = matching(PARTS, pattern)
            assert parts, f"the map names {pattern}, which is not there"
            found |= {part: number for part in parts if part not in found}
    return {**found, "__main__": max(found.values())}


@cache
def imports(name: str) -> set[str]:
    """Modules of the package, relative to it, that a module imports anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            parts = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        elif isinstance(node, ast.Import):
            parts = [alias.name for alias in node.names]
        else:
            continue
        inside = [p.removeprefix("selfdistill.") for p in parts if p.startswith("selfdistill.")]
        found |= {p for p in inside if p in FILES}
        found |= {f"{p}.__init__" for p in inside if f"{p}.__init__" in FILES}
    return found - {name}


def test_everything_is_on_the_map() -> None:
    assert set(PARTS) <= places().keys()


def test_imports_go_up_on_the_map() -> None:
    assert len(FILES) > 30
    place = places()
    for name in FILES:
        for imported in imports(name):
            theirs, own = imported.split(".")[0], name.split(".")[0]
            assert place[theirs] <= place[own], f"{name} imports {imported}"


def test_there_are_no_cycles() -> None:
    order = list(TopologicalSorter({name: imports(name) for name in FILES}).static_order())
    assert order.index("config") < order.index("objective.data2vec") < order.index("pretrain")


def test_nobody_names_a_modality() -> None:
    parts = [name.split(".") for name in FILES if name.startswith("modalities.")]
    folders = {path[1] for path in parts if len(path) == 3}
    assert folders >= {"audio", "image", "text"}
    for name in FILES:
        for folder in folders:
            own = f"modalities.{folder}."
            assert name.startswith(own) or not any(i.startswith(own) for i in imports(name)), name
            assert name.startswith(own) or f"selfdistill.{own[:-1]}" not in FILES[name].read_text()


def test_an_offence_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "def f():\n    from selfdistill.modalities import audio\n    import selfdistill.cli\n"
    offence = tmp_path / "offence.py"
    offence.write_text(code)
    monkeypatch.setitem(FILES, "models.offence", offence)
    seen = {"modalities.__init__", "modalities.audio.__init__", "cli"}
    assert imports("models.offence") == seen
    with pytest.raises(AssertionError, match=r"models\.offence imports"):
        test_imports_go_up_on_the_map()
