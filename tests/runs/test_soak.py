"""A run that is killed again and again, at any instant."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "soak.py"


def test_twenty_kills(tmp_path: Path) -> None:
    found = importlib.util.spec_from_file_location("soak_of_a_run", SCRIPT)
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    counts, _, same = script.soak(tmp_path, kills=20, steps=400, seed=0)
    print(counts)
    assert same
    assert (counts.tried, counts.survived, counts.lost) == (20, 20, 0)
    assert counts.inside_a_write >= 3
