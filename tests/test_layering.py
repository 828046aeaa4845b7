"""Every module imports from lower floors or from its own package only, and without cycles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import selfdistill

FLOORS = [
    {
        "__init__",
        "errors",
        "types",
        "config",
        "config_file",
        "config_limits",
        "config_yaml",
        "schedules",
        "step_parts",
        "masking",
        "renaming",
        "torch_file",
        "versions",
        "outputs",
        "cores",
        "recipes",
        "run_layout",
        "tensor_files",
        "durable",
        "folders",
        "redaction",
        "health",
    },
    {"models", "data", "packing"},
    {"modalities"},
    {"objective"},
    {"engine", "probes", "originals"},
    {"hub"},
    {
        "pretrain",
        "cli",
        "commands",
        "__main__",
        "initial_weights",
        "pretrained",
        "export",
        "pack",
        "evaluation",
        "samples",
        "embed",
        "resume",
        "run_files",
        "run_record",
        "run_scores",
        "pictures",
        "plots",
        "reports",
        "compare",
        "run_data",
        "bench",
        "inspect_data",
        "inspect_facts",
        "inspect_look",
        "inspect_page",
        "inspect_sheet",
        "probe",
        "probe_output",
    },
]
ROOT = Path(selfdistill.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
}
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}


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


def test_imports_go_down() -> None:
    assert len(FILES) > 30
    for name in FILES:
        package = name.split(".")[0]
        for imported in imports(name):
            theirs = imported.split(".")[0]
            same = package == theirs or FLOOR[package] == FLOOR[theirs] in (0, 6)
            assert same or FLOOR[theirs] < FLOOR[package], f"{name} imports {imported}"


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
        test_imports_go_down()
