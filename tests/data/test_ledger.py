"""What is said when no sample can be used."""

import re

import pytest

from selfdistill.data.ledger import all_bad


def told(*details: str) -> str:
    return str(all_bad([(f"k{i}", "too short", detail) for i, detail in enumerate(details)]))


def test_causes_and_examples_are_told() -> None:
    bad = [*(("a", "grey", ""),) * 2, ("b", "odd", "1 x 2")]
    assert str(all_bad(bad)) == (
        "every sample tried was bad: 2 x grey, 1 x odd (such as a: grey; a: grey; b: odd (1 x 2))"
    )


@pytest.mark.parametrize(
    ("lengths", "spread"),
    [
        (["0.04", "0.06", "0.11", "0.3"], "0 to 0.1: 2, 0.1 to 0.2: 1, 0.3 to 0.4: 1"),
        (["0", "0"], "0 to 1: 2"),
        (["0", "1e-05", "7e-06"], "0 to 5e-06: 1, 5e-06 to 1e-05: 1, 1e-05 to 1.5e-05: 1"),
        (["3"] * 5, "3 to 4: 5"),
        (["1", "1e+04", "1999"], "0 to 5000: 2, 10000 to 15000: 1"),
    ],
)
def test_lengths_are_told_as_a_histogram(lengths: list[str], spread: str) -> None:
    message = told(*(f"{n} seconds, at least 2e+04 needed" for n in lengths))
    assert message.startswith(f"every sample tried was bad: {len(lengths)} x too short (such as ")
    assert f"k0: too short ({lengths[0]} seconds, at least 2e+04 needed)" in message
    assert message.endswith(f"; seconds: {spread}")
    assert re.fullmatch("[ -~]+", message)


def test_what_is_no_length_is_left_alone() -> None:
    assert told("8000 Hz", "16000 Hz").endswith("k1: too short (16000 Hz))")
    assert told("broken", "").endswith("k1: too short)")
    assert told("1 seconds, at least 2 needed", "broken").endswith("k1: too short (broken))")
