import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import STEPS, config, evaluation, result, row, rows, write_run
from small_runs import SmallRuns

from selfdistill.cli import main
from selfdistill.health.bands import Band
from selfdistill.health.figures import FIGURES
from selfdistill.plots import Curve
from selfdistill.reports.chart import Chart, svg, thinned
from selfdistill.reports.report import report

EVIL = """x"><script>alert(1)</script><img src=http://a.b/c onerror='x()'>&amp;</style>"""
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What is on a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.css: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.css if self.open and self.open[-1] == "style" else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def classes(self, name: str) -> int:
        return sum(name in (attrs.get("class") or "").split() for _, attrs in self.tags)


def made(runs: Sequence[Path], tmp_path: Path) -> Page:
    out = tmp_path / "report.html"
    report(runs, out)
    text = out.read_text()
    page = Page(text)
    assert_alone(page)
    return page


def assert_alone(page: Page) -> None:
    """Nothing on the page is fetched, runs, or is named twice."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        for key, value in attrs.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("data:image/", "#"))
            if (value or "").startswith("#"):
                assert (value or "")[1:] in ids
            if "url(#" in (value or ""):
                assert (value or "").split("url(#")[1].split(")")[0] in ids
    css = " ".join(page.css)
    assert "url(" not in css
    assert "@import" not in css
    (policy,) = [
        attrs["content"]
        for _, attrs in page.tags
        if "content-security-policy" in (attrs.get("http-equiv") or "").lower()
    ]
    assert "default-src 'none'" in (policy or "")


def test_a_healthy_run(tmp_path: Path) -> None:
    lines = [*rows(), evaluation(100, 0.3), evaluation(STEPS, 0.42)]
    run = write_run(tmp_path / "letters", sorted(lines, key=lambda r: r["step"]), result())
    page = made([run], tmp_path)
    for text in (
        "letters",
        "Healthy",
        "linear probe of letter (+30.0 points on the untrained encoder) is 42.0 %",
        "200 of 200 steps",
        "0:00:20 of training",
        "image, letter: 26 classes, chance 3.8 %",
        "raw input (pixels) 36.0 % (34.0 to 38.0)",
        "trained encoder, layer 3 42.0 % (40.0 to 44.0)",
        "30.0 points over the untrained encoder.",
        "8 x MadeUp GPU",
        "Python 3.11.7, selfdistill 0.1.0, torch 2.15.0, CUDA 13.2",
        "selfdistill pretrain 'configs/made up.yaml'",
        "samples seen 1,600",
        "optim.lr 0.002",
        "data.max_bad_share 0.05",
        "Healthy: at least 0.27 (guard.min_relative_std 0.3 of the untrained teacher's 0.900).",
    ):
        assert text in page.text, text
    for key in row(1):
        if key in FIGURES:
            assert FIGURES[key].title in page.text
            assert FIGURES[key].meaning in page.text
    figures = [key for key in row(1) if key in FIGURES]
    assert page.classes("chart") == len(figures) + 3
    assert page.classes("is-out") == 0
    assert "Pictures" not in page.text


def test_intervals_are_over_the_test_samples(tmp_path: Path) -> None:
    """Of few-shot accuracies, too, whatever they deviate by from draw to draw."""
    found = result()
    few = found["image"]["tasks"]["letter"]["few_shot"]
    few["std"] = {"raw": 0.2, "untrained": 0.2, "trained": 0.2}
    older = made([write_run(tmp_path / "older", found=found)], tmp_path)
    assert "over the test samples (few-shot: of the mean over the draws)" in older.text
    assert "layer 3 21.0 % (19.0 to 23.0)" in older.text
    few["interval"] = {"trained": [0.18, 0.24]}
    newer = made([write_run(tmp_path / "newer", found=found)], tmp_path)
    assert "layer 3 21.0 % (18.0 to 24.0)" in newer.text


def test_one_run_and_several_tell_the_same_points(tmp_path: Path) -> None:
    """12.0 % on 11.9 %, though they are nearly 0.2 points apart."""
    found = result(trained=0.1204, untrained=0.11851)
    runs = [write_run(tmp_path / name, found=found) for name in "ab"]
    assert "(+0.1 points on the untrained encoder)" in made(runs[:1], tmp_path).text
    assert "(10.1 to 14.0), +0.1" in made(runs, tmp_path).text


def test_names_that_are_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / os.fsdecode(b"l\xe4uf"), found=result())
    environment = json.loads((run / "environment.json").read_text())
    environment["command"].append(os.fsdecode(b"run_dir=l\xe4uf"))
    (run / "environment.json").write_text(json.dumps(environment))
    assert main(["report", str(run)]) == 0
    assert "<h1>l\\xe4uf</h1>" in next(tmp_path.glob("*.html")).read_text(encoding="utf-8")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("l\\xe4uf: healthy")
    assert last == "written to l\\udce4uf-report.html"


def test_a_collapsed_run(tmp_path: Path) -> None:
    lines = rows(lambda step: {"target_std": 0.9 if step < 150 else 0.1})
    page = made([write_run(tmp_path / "run", lines)], tmp_path)
    assert "Collapsed Deviation of the targets 0.1, below 0.27 since step 150" in page.text
    assert page.classes("is-out") == 1
    assert page.text.count(FIGURES["target_std"].advice) == 3  # twice in its cards, and of the rank
    assert "not evaluated" in page.text


@pytest.mark.parametrize(("step", "words"), [(50, "Look at this"), (51, "Collapsed")])
def test_probes_are_judged_as_the_guard_does(step: int, words: str, tmp_path: Path) -> None:
    """From ``guard.after_steps`` on; before, warming up may leave less than there was at first."""
    found = result(trained=0.05)
    found["image"]["step"] = step
    page = made([write_run(tmp_path / "run", found=found)], tmp_path)
    assert f"{words} The linear probe of letter reads 5.0 % from the trained encoder" in page.text


def test_a_loss_that_is_not_finite_has_one_advice(tmp_path: Path) -> None:
    """The verdict's, in its card, too, and not that of the figure, which is against a collapse."""
    lost: dict[str, float | None] = {"loss": None, "target_std": None}
    lines = rows(lambda step: lost if step > 150 else {})
    page = made([write_run(tmp_path / "run", lines)], tmp_path)
    text = "No step after step 150 had a loss and a gradient that are finite."
    advice = FIGURES["left_out_steps"].advice
    assert f"Collapsed {text} {advice}" in page.text
    card = page.text.rpartition(text)[2].partition(FIGURES["prediction_std"].title)[0]
    assert f"What to try outside it {advice}" in card
    assert FIGURES["target_std"].advice not in card


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    page = made([write_run(tmp_path / "run", [row(10)])], tmp_path)
    assert "Too early to say" in page.text
    assert "Its band is not in force yet" in page.text


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "old",
        [{"step": 10, "loss": 1.0, "left_out_steps": 0.0}, {"step": 20, "loss": None}],
        {"image": {"linear": {"trained": 0.5, "raw": 0.4}}},
        {"modality": "image"},
    )
    (run / "environment.json").unlink()
    page = made([run], tmp_path)
    assert "trained encoder 50.0 %" in page.text
    assert "There is no untrained encoder to compare with." in page.text
    assert "unknown of training" in page.text
    assert "no step after step 10 had a loss" in page.text.lower()


def test_without_figures_nothing_is_healthy(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [{"step": 10, "loss": 1.0}])
    text = made([run], tmp_path).text
    assert "Too early to say None of the figures that show a collapse was logged." in text
    (run / "metrics.jsonl").write_text("")
    assert "Too early to say Nothing was logged yet." in made([run], tmp_path).text


def test_several_modalities(tmp_path: Path) -> None:
    parts = {name: {"guard": config()["guard"]} for name in ("audio", "text")}
    settings = config(modalities=parts)
    del settings["modality"]
    own = ("loss", "masked_share", "target_std", "prediction_std", "target_rank")
    lines = [
        {f"{name}/{key}": value for name in parts for key, value in line.items() if key in own}
        | {key: value for key, value in line.items() if key not in own[1:]}
        for line in rows()
    ]
    for line in lines[-4:]:
        line["text/target_std"] = 0.01
    run = write_run(tmp_path / "joint", lines, settings=settings)
    page = made([run], tmp_path)
    for text in ("audio", "text", "the whole run", "Collapsed Text: deviation of the targets"):
        assert text in page.text
    assert page.classes("is-out") == 1
    assert "samples seen 1,600" in page.text
    # of batches of a length nobody knows how many samples they had
    parts["audio"]["data"] = {"batch_length": 60.0}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "samples seen" not in made([run], tmp_path).text


def test_layers_share_a_chart(tmp_path: Path) -> None:
    extra = {f"teacher_norm_{i:02d}": float(i) for i in range(1, 13)} | {"odd_thing": 1.0}
    lines = [row(step, **extra) for step in range(10, 101, 10)]
    page = made([write_run(tmp_path / "run", lines)], tmp_path)
    assert "Length of the teacher's vectors, by block" in page.text
    assert "01 03 05 07 08 10 12" in page.text
    assert "Odd thing" in page.text


def test_runs_are_compared(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / name,
            rows(lambda step, bad=bad: {"data_wait": 0.5 if bad else 0.0}),
            result(trained),
            config(optim={"lr": lr}, seed=seed, run_dir=f"runs/{name}"),
        )
        for name, bad, trained, lr, seed in (
            ("first", False, 0.42, 0.002, 0),
            ("second", True, 0.51, 0.004, 1),
        )
    ]
    page = made(runs, tmp_path)
    for text in (
        "2 runs compared",
        "first second image, letter: linear 42.0 % (40.0 to 44.0), +30.0 "
        "51.0 % (49.0 to 53.0), +39.0",
        "seed 0 1",
        "optim.lr 0.002 0.004",
        "second: Wait for data 50.0 %, above 10.0 % since step 20",
    ):
        assert text in page.text, text
    assert "run_dir" not in page.text
    assert "model.width" not in page.text
    cells = [attrs for tag, attrs in page.tags if tag == "td"]
    assert {attrs["data-run"] for attrs in cells} == {"first", "second"}
    assert [a["data-run"] for a in cells if a.get("class") == "best"] == ["second"] * 3
    assert page.classes("look") == 2  # the verdict on the second one, and its card


def test_runs_that_were_not_evaluated_can_be_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in "ab"]
    text = made(runs, tmp_path).text
    assert "None of these runs was evaluated" in text
    assert "All settings are the same." in text


def test_the_page_has_a_name_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(write_run(tmp_path / name, [row(10)])) for name in ("one", "two")]
    monkeypatch.chdir(tmp_path)
    assert main(["report", runs[0]]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "written to one-report.html"
    assert main(["report", *runs]) == 0
    assert {path.name for path in tmp_path.glob("*.html")} == {"one-report.html", "report.html"}


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name / "run") for name in "ab"]
    page = made(runs, tmp_path)
    for run in runs:
        assert str(run) in page.text


def test_nothing_of_a_run_becomes_html(tmp_path: Path) -> None:
    settings = config(modality=EVIL, run_dir=EVIL, optim={"lr": EVIL}, strategy=EVIL)
    settings[EVIL] = EVIL
    lines = [row(10, **{EVIL: 1.0}), {"step": 10, f"eval/{EVIL}/{EVIL}": 0.5}]
    modality = EVIL.rpartition(".")[2]
    found = {EVIL: {"raw_input": EVIL, "tasks": {EVIL: {EVIL: {"trained": 0.5, "layer": EVIL}}}}}
    runs = [
        write_run(tmp_path / name.replace("/", "%"), lines, found, settings)
        for name in (EVIL, f"{EVIL}2")
    ]
    for run in runs:
        (run / "environment.json").write_text(json.dumps({"device": EVIL, "command": [EVIL]}))
        (run / "pictures").mkdir()
        (run / "pictures" / f"{EVIL.replace('/', '%')}.svg").write_text(f"<svg>{EVIL}</svg>")
    for chosen in (runs[:1], runs):
        page = made(chosen, tmp_path)
        assert EVIL in page.text
        assert modality in page.text


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    settings = config(data={"train": ["https://me:hidden@a.b/c.tar"]})
    text = made([write_run(tmp_path / "run", settings=settings)], tmp_path).text
    assert "hidden" not in text
    assert "a.b/c.tar" in text


def test_pictures_are_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    (run / "pictures" / "maps").mkdir(parents=True)
    (run / "pictures" / "maps" / "first_layer.png").write_bytes(b"png")
    (run / "pictures" / "z.svg").write_bytes(b"<svg/>")
    (run / "pictures" / "notes.txt").write_text("no picture")
    page = made([run], tmp_path)
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert sources == [
        f"data:image/png;base64,{base64.b64encode(b'png').decode()}",
        f"data:image/svg+xml;base64,{base64.b64encode(b'<svg/>').decode()}",
    ]
    assert "maps: first layer" in page.text
    monkeypatch.setattr("selfdistill.reports.pictures._MOST_BYTES", 4)
    assert "Left out: pictures/z.svg" in made([run], tmp_path).text


def test_equal_folders_make_equal_pages(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", found=result())
    out = tmp_path / "a.html"
    report([run], out)
    first = out.read_bytes()
    report([run], out)
    assert out.read_bytes() == first


def test_long_runs_make_no_long_pages() -> None:
    count = 100_000
    values = [1.0 + (i == 777) * 5.0 for i in range(count)]
    # the limits of two lines, by which values that are no extremes are outside
    low = [0.5 + (i in (888, 40_000)) for i in range(count)]
    chart = Chart("a", [Curve("a", range(count), values)], {"a": Band(low, [inf] * count, "")})
    (found,), band = thinned(chart).curves, thinned(chart).bands["a"]
    assert len(found.at) == len(found.values) == len(band.low) == len(band.high) <= 310
    assert max(found.values) == 6.0
    assert (found.at[0], found.at[-1]) == (0, count - 1)
    assert list(found.at) == sorted(found.at)
    outside = [found.at[i] for i, value in enumerate(found.values) if band.is_out(i, value)]
    assert outside == [888, 40_000]
    rising = Band([step / count for step in range(count)], [inf] * count, "")
    assert len(svg(Chart("a", chart.curves, {"a": rising}), {"a": 0}, "p-")) < 100_000


@pytest.mark.parametrize(
    "values",
    [[], [float("nan")], [0.0], [1.0], [0.0, 0.0], [1e-9, 1e9], [-1.0, 1.0], [0.0, float("nan")]],
)
def test_any_values_can_be_drawn(values: list[float]) -> None:
    for logarithmic in (False, True):
        chart = Chart("a", [Curve("a", range(len(values)), values)], logarithmic=logarithmic)
        drawn = svg(chart, {"a": 0}, "p-")
        Page(drawn)
        assert ("var(--c0)" in drawn) == bool(values)


def test_counts_have_whole_numbers_beside_them() -> None:
    drawn = svg(Chart("", [Curve("", [1, 2], [0.0, 0.0])]), {"": 0}, "p")
    assert Page(drawn).text == "0 1 2 0 1"


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    out = str(tmp_path / "r.html")
    for words, expected in (
        ([good, "--out", "r.pdf"], "--out: 'r.pdf' must end in .html"),
        ([good, "--out", tmp_path / "no" / "r.html"], "--out: there is no folder"),
        ([tmp_path / "empty", "--out", out], "give the folder of a run"),
        ([good, tmp_path / "nothing", "--out", out], "there is no such folder"),
        ([good, good, "--out", out], f"{good}: is named twice"),
    ):
        assert main(["report", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
    assert not Path(out).exists()


def test_a_real_run(runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = runs.run("text"), tmp_path / "r.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert "text: too early to say" in capsys.readouterr().out
    page = Page(out.read_text())
    assert_alone(page)
    assert "3 of 3 steps" in page.text


def test_torch_is_not_needed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", found=result())
    code = (
        "import sys; from selfdistill.cli import main; "
        f"main(['report', {str(run)!r}, '--out', {str(tmp_path / 'r.html')!r}]); "
        f"main(['watch', {str(run)!r}]); print({{*sys.modules}} & {{'torch', 'accelerate'}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("number", [1, 3, 8])
def test_in_a_browser(number: int, width: int, tmp_path: Path) -> None:
    """Nothing is wider than the window, all curves are drawn, and tables break long words only."""
    name = "a-name-of-a-run-that-is-so-long-that-it-fills-more-than-a-telephone-is-wide"
    long = {"data": {"train": ["/a/very/long/path" * 12]}, "made": {"up" * 60: "x" * 200}}
    paths = [
        write_run(tmp_path / f"{i}{'' if i else name}", rows(), result(), config(**long, seed=i))
        for i in range(number)
    ]
    report(paths, tmp_path / "report.html")
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<iframe id="f" src="report.html" style="width:{width}px;height:3000px"></iframe><script>'
        "onload = () => { const d = f.contentDocument, e = d.documentElement;"
        "for (const x of d.querySelectorAll('details')) x.open = true;"
        "const charts = [...d.querySelectorAll('svg.chart')].map(c => c.getBoundingClientRect());"
        "const texts = [...d.querySelectorAll('svg text')].map(t => t.getBoundingClientRect());"
        "const broken = [], range = d.createRange();"
        "for (const cell of d.querySelectorAll('.runs :is(th, td)')) {"
        "const walker = d.createTreeWalker(cell, NodeFilter.SHOW_TEXT);"
        "for (let node; node = walker.nextNode();)"
        "for (const w of node.data.matchAll(/[^\\s-]+/g)) {"
        "range.setStart(node, w.index); range.setEnd(node, w.index + w[0].length);"
        "if (w[0].length <= 20 && range.getClientRects().length > 1) broken.push(w[0]); } }"
        "document.title = JSON.stringify({broken, window: e.clientWidth, page: e.scrollWidth,"
        "charts: charts.length, narrowest: Math.min(...charts.map(c => c.width)),"
        "smallest: Math.min(...texts.map(t => t.height)),"
        "scrolled: [...d.querySelectorAll('*')].filter(x => x.scrollWidth > x.clientWidth + 1"
        " && getComputedStyle(x).overflowX != 'visible').length}) }</script>"
    )
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,3000",
            "--dump-dom",
            probe.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    found: dict[str, Any] = json.loads(title)
    assert found["window"] == found["page"] == width
    assert found["charts"] == len([key for key in row(1) if key in FIGURES])
    assert found["narrowest"] > 250
    assert found["smallest"] > 9
    assert found["scrolled"] == 0
    assert found["broken"] == []
