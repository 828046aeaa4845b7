"""What all benchmarks rest on: turns, ratios by round, fitted lines, and results without paths."""

import pytest
from measuring import in_turns, origin, ratio_of
from scaling import TIMES, fitted


def test_the_order_turns_round_after_a_warm_up_of_each() -> None:
    calls: list[str] = []
    found = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_taken_round_by_round() -> None:
    """So that a round in which all were slow says no more than the others."""
    found = ratio_of([2, 20, 4], [1, 10, 1])
    assert (found.median, found.low, found.high, found.interval) == (2, 2, 4, "min to max")


def test_many_rounds_have_a_bootstrap_interval_within_their_range() -> None:
    found = ratio_of([1.0, 1.1, 1.2, 1.3, 1.4, 9.0, 1.25], [1.0] * 7)
    assert found.interval == "95 % bootstrap"
    assert 1.0 <= found.low < found.median == 1.25 < found.high < 9


def test_a_line_is_found_again() -> None:
    line = fitted([*TIMES], [3.0 + 0.5 * n for n in TIMES])
    assert (line.a, line.b) == pytest.approx((3.0, 0.5))


def test_a_result_names_no_path_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["/home/me/tests/benchmarks/x.py", "text", "--json", "/home/me/x.json", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", argv)
    found = origin("torch")
    assert found["command"] == "python tests/benchmarks/x.py text --rounds 2"
    assert "/home" not in str(found)
