from dataclasses import replace
from math import inf, isnan, nan

import pytest
from small_runs import SmallRuns

from selfdistill.config import GuardConfig
from selfdistill.engine.guard import CollapseGuard
from selfdistill.errors import HealthError
from selfdistill.health.bands import bands
from selfdistill.health.figures import FIGURES, family_of, figure_of
from selfdistill.health.verdict import Finding, judge, judge_probes, since, verdict
from selfdistill.run_folder.record import read_record

GUARD = GuardConfig(after_steps=20, min_relative_std=0.5, min_relative_rank=0.25, patience=2)
STEPS = [10, 20, 30, 40, 50]


def series(**changes: list[float]) -> dict[str, list[float]]:
    usual = {
        "target_std": [0.8] * 5,
        "prediction_std": [0.5] * 5,
        "sample_std": [0.6] * 5,
        "target_rank": [40.0] * 5,
        "teacher_distance": [0.1] * 5,
    }
    return {**usual, **changes}


def guard_all(values: dict[str, list[float]]) -> None:
    guard = CollapseGuard(GUARD)
    for i, step in enumerate(STEPS):
        guard.check(step, {name: column[i] for name, column in values.items()})


def test_limits_are_the_guards_and_begin_where_it_does() -> None:
    values = series(target_std=[0.8, 0.7, 0.6, 0.5, 0.45])
    found = bands(STEPS, values, GUARD)
    low = found["target_std"].low
    assert [isnan(value) for value in low] == [True, True, False, False, False]
    assert low[2:] == [0.4] * 3
    assert "guard.min_relative_std 0.5 of the untrained teacher's 0.800" in found["target_std"].why
    assert found["target_rank"].low[-1] == 10.0
    share = GUARD.min_predicted_share
    assert found["prediction_std"].low[2:] == [share * value for value in (0.6, 0.5, 0.45)]


def test_the_reference_is_the_first_line_with_a_figure() -> None:
    values = series(target_std=[nan, 0.6, 0.6, 0.6, 0.6], target_rank=[nan, 20.0, 20, 20, 20])
    found = bands(STEPS, values, GUARD)
    assert found["target_std"].low[-1] == pytest.approx(0.3)
    assert found["target_rank"].low[-1] == 5.0


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("target_std", 0.39),
        ("target_rank", 9.0),
        ("prediction_std", 0.02),
        ("teacher_distance", 1e-7),
    ],
)
def test_what_stops_a_run_is_called_collapsed(key: str, bad: float) -> None:
    good = series()[key][0]
    for last, expected in (([good, bad], []), ([bad, bad], ["collapsed"])):
        values = series(**{key: [good, good, good, *last]})
        found = judge(STEPS, values, bands(STEPS, values, GUARD), GUARD)
        assert [finding.status for finding in found] == expected
        if expected:
            with pytest.raises(HealthError, match="collapsed at step 50"):
                guard_all(values)
            assert found[0].key == key
            assert "since step 40" in found[0].text
            assert found[0].advice == FIGURES[key].advice
        else:
            guard_all(values)


def test_fewer_lines_than_the_guard_waits_for_are_worth_a_look() -> None:
    values = series(target_std=[0.8, 0.8, 0.3, 0.3, 0.3])
    short = {key: column[:3] for key, column in values.items()}
    found = judge(STEPS[:3], short, bands(STEPS[:3], short, GUARD), GUARD)
    assert [finding.status for finding in found] == ["look"]


def test_before_the_guard_begins_it_is_too_early() -> None:
    values = {key: column[:2] for key, column in series(target_std=[0.8, 0.1, 0, 0, 0]).items()}
    found = judge(STEPS[:2], values, bands(STEPS[:2], values, GUARD), GUARD)
    assert [finding.status for finding in found] == ["early"]
    assert "from step 20 on" in found[0].text
    assert judge([], {}, {}, GUARD)[0].status == "early"


def test_a_copied_teacher_is_seen_at_once() -> None:
    values = {key: column[:2] for key, column in series(teacher_distance=[0.0] * 5).items()}
    found = judge(STEPS[:2], values, bands(STEPS[:2], values, GUARD), GUARD)
    assert [(finding.key, finding.status) for finding in found] == [("teacher_distance", "look")]


def test_a_teacher_left_behind_is_worth_a_look_and_stops_nothing() -> None:
    guard = replace(GUARD, max_teacher_distance=0.2)
    values = series(teacher_distance=[0.1, 0.1, 0.1, 0.3, 0.3])
    found = judge(STEPS, values, bands(STEPS, values, guard), guard)
    assert [(finding.key, finding.status) for finding in found] == [("teacher_distance", "look")]
    assert "0.3, above 0.2 since step 40" in found[0].text
    assert "a smaller optim.lr" in found[0].advice
    guard_all(values)


def test_a_loss_that_is_no_number_is_said_first() -> None:
    values = series(target_std=[0.8, 0.8, 0.8, 0.8, nan], loss=[1, 1, 1, 1, nan])
    found = judge(STEPS, values, bands(STEPS, values, GUARD), GUARD)
    assert (found[0].status, found[0].key) == ("collapsed", "target_std")
    assert "no step after step 40 had" in found[0].text
    values = series(target_std=[nan] * 5, loss=[nan] * 5)
    assert "no step up to step 50 had" in judge(STEPS, values, {}, GUARD)[0].text


@pytest.mark.parametrize(
    ("key", "column", "is_out"),
    [
        ("masked_share", [0.4, 0.4, 0.4, 0.97, 0.97], True),
        ("masked_share", [0.4, 0.4, 0.4, 0.94, 0.94], False),
        ("ema_decay", [0.89] * 5, True),
        ("data_wait", [0.9, 0.05, 0.05, 0.11, 0.11], True),
        ("data_wait", [0.9, 0.05, 0.05, 0.05, 0.05], False),
        ("left_out_steps", [0, 0, 0, 1, 1], True),
        ("left_out_steps", [0, 0, 0, 0, 0], False),
        ("rollbacks", [0, 0, 0, 1, 1], True),
        ("samples_per_second", [9, 9, 9, 4, 4], True),
        ("samples_per_second", [9, 9, 9, 5, 5], False),
        ("bad_samples", [0, 0, 0, 9, 11], True),
        ("bad_samples", [0, 0, 0, 1, 1], False),
        ("explained_variance", [-1, -1, 0.1, -0.1, -0.1], True),
        ("explained_variance", [-1, -1, 0.1, 0.1, 0.1], False),
        ("loss", [1, 2, 4, 8, 16], False),
    ],
)
def test_rules_of_thumb(key: str, column: list[float], is_out: bool) -> None:
    values = {key: column}
    found = judge(STEPS, values, bands(STEPS, values, GUARD, bad_per_step=0.2), GUARD)
    assert [finding.status for finding in found] == (["look"] if is_out else [])


def test_a_gradient_is_measured_by_those_before_it() -> None:
    steps = list(range(1, 11))
    for last, expected in ((21.0, 1), (19.0, 0)):
        values = {"grad_norm": [2.0] * 8 + [last] * 2}
        found = judge(steps, values, bands(steps, values, GUARD), GUARD)
        assert len(found) == expected
    band = bands(steps, {"grad_norm": [2.0] * 10}, GUARD)["grad_norm"]
    assert (band.high[4], band.high[5]) == (inf, 20.0)


def test_how_many_bad_samples_are_many_may_be_unknown() -> None:
    assert "bad_samples" not in bands(STEPS, {"bad_samples": [0.0] * 5}, GUARD)


def test_since_when() -> None:
    values = series(target_std=[0.8, 0.1, 0.1, 0.8, 0.1])
    band = bands(STEPS, values, GUARD)["target_std"]
    assert since(STEPS, values["target_std"], band) == 50
    assert since(STEPS, [0.8] * 5, band) is None


def table(trained: float, untrained: float | None) -> dict[str, object]:
    errors = {"trained": 0.01, "untrained": 0.01}
    return {"linear": {"trained": trained, "untrained": untrained, "standard_error": errors}}


@pytest.mark.parametrize(
    ("trained", "untrained", "first", "other"),
    [
        (0.50, 0.40, [], []),
        (0.42, 0.40, ["look"], []),
        (0.39, 0.40, ["look"], []),
        (0.37, 0.40, ["collapsed"], ["look"]),
        (0.37, None, [], []),
    ],
)
def test_probes_are_measured_by_the_untrained_encoder(
    trained: float, untrained: float | None, first: list[str], other: list[str]
) -> None:
    found = table(trained, untrained)

    def told(headline: bool, judged: bool) -> list[str]:
        return [finding.status for finding in judge_probes("a", found, headline, judged)]

    assert told(headline=True, judged=True) == first
    assert told(headline=False, judged=True) == other
    assert told(headline=True, judged=False) == ["look"] * len(first)


def test_older_tables_have_no_errors() -> None:
    old = {"linear": {"trained": 0.5, "untrained": 0.4}}
    assert judge_probes("a", old, headline=True, judged=True) == []
    assert judge_probes("a", {"knn": {}}, headline=True, judged=True) == []


def test_the_worst_decides() -> None:
    found = verdict([Finding("look", "a"), Finding("collapsed", "b"), Finding("early", "c")])
    assert (found.status, found.words) == ("collapsed", "Collapsed")
    assert [finding.text for finding in found.findings] == ["b", "a", "c"]
    assert verdict([]).status == "healthy"


def test_names_of_layers_and_parts() -> None:
    assert family_of("teacher_norm_03") == ("teacher_norm", "03")
    assert family_of("grad_norm_blocks") == ("grad_norm", "blocks")
    assert family_of("other/part") == ("other", "part")
    assert family_of("target_std") == ("target_std", "")
    assert figure_of("grad_norm_blocks") is FIGURES["grad_norm"]
    assert figure_of("odd_thing").title == "Odd thing"


def test_all_that_a_run_logs_is_explained(runs: SmallRuns) -> None:
    (log,) = read_record(runs.run("image")).logs().values()
    assert [name for name in log.values if not figure_of(name).meaning] == []


def test_values_are_written() -> None:
    assert FIGURES["data_wait"].written(0.0512) == "5.1 %"
    assert FIGURES["loss"].written(nan) == "none"
