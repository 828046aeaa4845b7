"""What is said and shown of shards, and of the data of a config."""

import base64
import io
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from modality_cases import MODALITIES
from modality_cases.audio import RATE
from modality_cases.audio import sample as audio
from modality_cases.image import sample as image
from PIL import Image
from small_runs import JOINT, SmallRuns
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import write_config, write_shard

from selfdistill.cli import main
from selfdistill.data.elsewhere.retries import add_retry, take_retries
from selfdistill.data.locations import resolve
from selfdistill.data.shards import ShardSet
from selfdistill.data.sidecar import write_sidecar
from selfdistill.errors import UserError
from selfdistill.inspection import data as module
from selfdistill.inspection import look
from selfdistill.inspection.data import inspect_data
from selfdistill.inspection.look import Subject, look_at
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.picture import Area, SamplePicture, Shown

Samples = list[dict[str, bytes]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def rows(table: str) -> dict[str, str]:
    """The first modality's lines by their names."""
    lines = [line for line in table.split("\n\n")[0].splitlines() if line.startswith("  ")]
    return {name.strip(): words for name, words in (line.rsplit("  ", 1) for line in lines)}


def shard(path: Path, samples: Samples) -> str:
    return str(write_shard(path, samples))


def config_of(tmp_path: Path, modality: str, samples: Samples) -> str:
    names = [shard(tmp_path / "train.tar", samples)]
    return str(write_config(tmp_path / "config.yaml", modality, names, tmp_path / "run"))


def picture_of(runs: SmallRuns, modality: str, *words: str, run_dir: Path) -> SamplePicture:
    declared = load_modality(modality)
    assert declared.picture is not None
    return declared.picture(runs.config(modality, *words, run_dir=run_dir))


def drawn(picture: SamplePicture, shown: Shown, width: float = 4.0) -> Figure:
    height = picture.height(shown, width)
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    picture.draw(Area(figure, 0, 0, width, height), shown)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def test_a_name_like_that_of_a_recipe_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no recipe of that name; did you mean image/sample"):
        inspect_data(["image/sampel"])
    with pytest.raises(UserError, match=r"SHARDS: no file matches 'image/sample\*'"):
        inspect_data(["image/sample*"])


def test_the_folder_of_a_run_is_told_with_its_config(runs: SmallRuns, tmp_path: Path) -> None:
    run = runs.run("image")
    config = run / "config.yaml"
    words = f"SHARDS: folder '{run}' has no shards but a config, as runs have; name that: "
    with pytest.raises(UserError, match=re.escape(f"{words}'{config}'")):
        inspect_data([str(run)])
    assert inspect_data([str(config)]).startswith("image\n")
    (tmp_path / "config.yaml").touch()
    shard(tmp_path / "a.tar", [{"txt": b"a"}])
    assert inspect_data([str(tmp_path)]).startswith("text\n")


@pytest.mark.parametrize(
    ("modality", "members", "measure"),
    [
        ("audio", "48 .wav", "seconds"),
        ("image", "48 .png", "width (pixels)"),
        ("text", "48 .txt", "characters"),
    ],
)
def test_shards_tell_what_they_hold(
    modality: str, members: str, measure: str, runs: SmallRuns
) -> None:
    folder = Path(runs.shards(modality)[0]).parent
    table = inspect_data([str(folder)])
    found = rows(table)
    assert table.startswith(f"{modality}\n")
    assert (found["shards"], found["samples"]) == ("2 of 24 to 24", "48")
    assert (found["members"], found["labels"]) == (members, "none")
    assert found["bad samples"] == "none of 48 samples looked at"
    assert found["faults"] == "none in the shards"
    assert measure in found
    assert "masked" not in found
    assert ("total length" in found) == (modality == "audio")


def test_sizes_lengths_and_labels_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    labels = [b"3", b"3", b"7", None]
    clips = [audio(rng, 0, seconds) for seconds in (36, 36, 72, 144)]
    for clip, label in zip(clips, labels, strict=True):
        clip.update({} if label is None else {"cls": label})
    found = rows(inspect_data([shard(tmp_path / "a.tar", clips)]))
    assert found["total length"] == "0.08 hours"
    assert found["seconds"] == "median 54, from 36 to 144"
    assert found["labels"] == "2 classes of 1 to 2 (3: 2, 7: 1); 1 without one"
    size = sum(len(data) for clip in clips for data in clip.values())
    assert found["bytes"] == f"{size / 1e6:.2f} MB"
    out = io.BytesIO()
    Image.new("RGB", (60, 20)).save(out, "PNG")
    pictures = [image(rng, 0), {"png": out.getvalue()}, image(rng, 0)]
    found = rows(inspect_data([shard(tmp_path / "b.tar", pictures)]))
    assert found["width (pixels)"] == "median 18, from 18 to 60"
    assert found["height (pixels)"] == "median 18, from 18 to 20"


def test_a_histogram_has_round_steps_and_all_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [{"txt": b"x" * n} for n in (10, 11, 29, 105)]
    path = shard(tmp_path / "a.tar", passages)
    lines = inspect_data([path]).splitlines()
    bars = lines[lines.index("  characters") + 1 :]
    found = [re.fullmatch(r" +(.+ to .+?)  (#*) +(\d+)", bar) for bar in bars]
    counts = {match[1]: (len(match[2]), int(match[3])) for match in found if match}
    assert len(counts) == len(bars) == 10
    assert {span: count for span, count in counts.items() if count[1]} == {
        "10 to 20": (40, 2),
        "20 to 30": (20, 1),
        "100 to 110": (20, 1),
    }
    monkeypatch.setattr(look, "LOOKED_AT", 3)
    assert "  characters, of 3 samples" in inspect_data([path]).splitlines()


def test_broken_connections_are_told(runs: SmallRuns) -> None:
    take_retries()
    assert "connections" not in rows(inspect_data(runs.shards("image")))
    add_retry()
    found = rows(inspect_data(runs.shards("image")))
    assert found["connections"] == "broken and tried again: 1"


def test_bad_shards_are_told(runs: SmallRuns, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"")
    words = f"data.train=[{tmp_path / 'bad.tar'},{','.join(runs.shards('image'))}]"
    config = str(runs.config_file("image", tmp_path / "run"))
    found = rows(inspect_data([config, words, "data.skip_bad_shards=true"]))
    assert found["shards"] == "2 of 24 to 24"
    why = f"{tmp_path / 'bad.tar'} is not a tar file (empty file)"
    assert found["bad shards"] == f"1 left out: {why}"
    assert "bad shards" not in rows(inspect_data([config]))


def test_bad_samples_and_faults_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    samples = [image(rng, 0), {"png": b"no image"}, {"png": b""}, {"png": b"no"}, {"txt": b"a"}]
    path = tmp_path / "a.tar"
    shard(path, samples)
    members = path.read_bytes().rstrip(b"\0")
    path.write_bytes(members + bytes(-len(members) % 512))
    found = rows(inspect_data([str(path)]))
    assert re.match(
        r"3 of 4 samples looked at: 2 x undecodable image, 1 x empty image \(such as s000\d: ",
        found["bad samples"],
    )
    assert "0x" not in found["bad samples"]
    assert found["left out"] == "1 samples without such a member"
    assert found["faults"].startswith("a.tar: truncated or corrupt")


def test_an_empty_first_member_does_not_hide_the_modality(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    for first in ({"jpg": b""}, {"jpg": b"", "txt": b"a cat"}):
        path = shard(tmp_path / "a.tar", [first, *(image(rng, 0) for _ in range(3))])
        table = inspect_data([path])
        assert table.splitlines()[0] == "image"
        assert rows(table)["samples"] == "4"
        assert "1 x empty image" in rows(table)["bad samples"]
    table = inspect_data([shard(tmp_path / "a.tar", [{"txt": b""}, {"txt": b""}])])
    assert table.splitlines()[0] == "text"


def test_labels_that_are_words_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    path = shard(tmp_path / "a.tar", [image(rng, 0) | {"cls": b"cat"}] * 3)
    assert rows(inspect_data([path]))["labels"] == "none; 3 .cls that are no integers"


def test_faults_are_warned_of_once(
    tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    inspect_data([shard(tmp_path / "a.tar", [image(rng, 0), {"seg.png": b"1"}])])
    assert [record.getMessage()[:27] for record in caplog.records] == [
        "SHARDS: 1 faults in the sha"
    ]


def test_a_part_of_many_samples_is_looked_at(
    runs: SmallRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "LOOKED_AT", 10)
    found = rows(inspect_data(runs.shards("audio")))
    assert found["bad samples"] == "none of 10 samples looked at"
    assert found["total length"].startswith("about ")
    monkeypatch.setattr(look, "SHARDS_LOOKED_AT", 1)
    monkeypatch.setattr(look, "LOOKED_AT", 30)
    assert rows(inspect_data(runs.shards("audio")))["bad samples"].startswith("none of 24 ")


def test_lengths_of_an_index_are_believed(
    runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "LOOKED_AT", 4)
    path = tmp_path / "a.tar"
    path.write_bytes(Path(runs.shards("audio")[0]).read_bytes())
    lengths = np.full(24, 300, np.float32)
    write_sidecar(path, lengths=lengths, digest="")
    assert rows(inspect_data([str(path)]))["total length"] == "2 hours"
    lengths[7] = np.nan
    write_sidecar(path, lengths=lengths, digest="")
    assert rows(inspect_data([str(path)]))["total length"].startswith("about 0.00")


def test_captions_do_not_make_it_text(tmp_path: Path, rng: np.random.Generator) -> None:
    pairs = [image(rng, 0) | {"txt": b"a picture"} for _ in range(3)]
    path = shard(tmp_path / "a.tar", pairs)
    assert inspect_data([path]).startswith("image\n")
    table = inspect_data([path], modality="text")
    assert table.startswith("text\n")
    assert rows(table)["members"] == "3 .txt; not read: .png"


def test_a_config_tells_what_is_masked(tmp_path: Path, rng: np.random.Generator) -> None:
    path = config_of(tmp_path, "image", [image(rng, 0) for _ in range(8)])
    words = ["mask.kind=squares", "mask.mask_prob=0.75", "mask.num_masks=2"]
    page = tmp_path / "page.html"
    found = rows(inspect_data([path, *words], page))
    assert found["masked"] == "75.0% of what is no padding"
    assert "image: as training sees it, under the first of 2 masks" in page.read_text()
    assert found["padding"] == "none, all inputs have one length"
    assert not (tmp_path / "run").exists()


def test_samples_are_shown_as_training_sees_them(runs: SmallRuns, tmp_path: Path) -> None:
    words = ("mask.kind=squares", "mask.mask_prob=0.75", "mask.num_masks=2")
    config = runs.config("image", *words, run_dir=tmp_path / "run")
    picture = picture_of(runs, "image", *words, run_dir=tmp_path / "run")
    shards = ShardSet(resolve(runs.shards("image")), picture.extensions)
    subject = Subject("image", load_modality("image"), picture, shards, config, 8)
    found = look_at(subject, 5, seed=1)
    assert len(found.shown) == 5
    assert len({shown.key for shown in found.shown}) > 1
    for shown in found.shown:
        assert shown.value.shape == (3, 16, 16)
        assert shown.masked is not None
        assert (shown.masked.shape, shown.masked.sum()) == ((16,), 12)
    one = picture_of(runs, "image", *words[:2], run_dir=tmp_path / "run")
    first = look_at(replace(subject, picture=one), 5, seed=1)
    for shown, again in zip(found.shown, first.shown, strict=True):
        assert np.array_equal(shown.masked, again.masked)
    raw = look_at(replace(subject, config=None), 5, seed=1)
    assert [shown.key for shown in raw.shown] == [shown.key for shown in found.shown]
    assert all(shown.masked is None and shown.value.size == (18, 18) for shown in raw.shown)


def test_a_config_tells_what_is_padding(tmp_path: Path, rng: np.random.Generator) -> None:
    clips = [audio(rng, 0, seconds) for seconds in (0.1, 0.3) for _ in range(8)]
    path = config_of(tmp_path, "audio", clips)
    words = [path, "input.max_seconds=0.2"]
    # in a batch of all, half of the clips are padded to twice their length
    found = rows(inspect_data([*words, "train.batch_size=16"]))
    assert found["padding"] == "25.0% of the inputs in batches of 16 samples"
    found = rows(inspect_data([*words, "train.batch_size=16", "train.accumulate=16"]))
    assert found["padding"] == "0.0% of the inputs in batches of 1 samples"
    # three steps of an epoch: eight short clips, and twice four long ones, if rounding lets them
    found = rows(inspect_data([*words, "data.batch_length=0.8"]))
    share, batches = found["padding"].split("% of the inputs in ")
    assert batches == "batches of 0.8 seconds"
    assert float(share) < 5
    found = rows(inspect_data([*words, "data.batch_length=1.6", "train.accumulate=2"]))
    assert found["padding"].endswith("batches of 0.8 seconds")
    # two steps: two long clips come to the short ones
    found = rows(inspect_data([*words, "data.batch_length=1.2"]))
    assert found["padding"] == "25.0% of the inputs in batches of 1.2 seconds"
    found = rows(inspect_data([*words, "data.batch_length=0.15"]))
    assert found["padding"].startswith("data.batch_length: 0.15 does not hold one of the longest")
    assert found["padding"].endswith("use at least 0.3")  # 0.2 is less than 0.2 as float32
    found = rows(inspect_data([*words, "data.batch_length=0.3"]))
    assert found["padding"].endswith("batches of 0.3 seconds")


def test_several_modalities_are_told_one_by_one(runs: SmallRuns, tmp_path: Path) -> None:
    path = str(runs.config_file(JOINT, tmp_path / "run"))
    parts = inspect_data([path]).split("\n\n")
    assert [part.split("\n")[0] for part in parts] == list(MODALITIES)
    assert inspect_data([path], modality="image").startswith("image\n")
    page = tmp_path / "page.html"
    inspect_data([path], page, samples=2)
    assert page.read_text().count("<figure>") == 2 * len(MODALITIES)


def test_pictures_depend_on_the_seed_alone(runs: SmallRuns, tmp_path: Path) -> None:
    every = str(runs.config_file(JOINT, tmp_path / "run"))
    one = str(runs.config_file("image", tmp_path / "run"))
    found = {}
    for name, config, seed in (
        ("a.png", every, 1),
        ("b.png", every, 1),
        ("a.svg", one, 1),
        ("b.svg", one, 1),
        ("c.svg", one, 2),
    ):
        inspect_data([config], tmp_path / name, samples=1, seed=seed)
        found[name] = (tmp_path / name).read_bytes()
    assert found["a.png"] == found["b.png"]
    assert found["a.svg"] == found["b.svg"] != found["c.svg"]
    assert Image.open(tmp_path / "a.png").width == 1800
    assert found["a.svg"].startswith(b"<?xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(found)


def test_a_page_needs_nothing_else(runs: SmallRuns, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    inspect_data([str(runs.config_file("audio", tmp_path))], page, samples=3)
    content = page.read_text()
    assert content.count("<figure>") == 3
    sources = re.findall(r'(?:src|href)="([^"]*)"', content)
    assert len(sources) == 3
    for source in sources:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).width > 400
    assert "http:" not in content.replace("http-equiv", "")
    assert "https:" not in content
    for words in ("default-src 'none'", "width=device-width", "prefers-color-scheme: dark"):
        assert words in content
    assert "<th>seconds</th><td>median" in content


def test_names_in_a_page_are_only_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"l\xe4uf.tar")  # a name need not be text
    passage = b"<script>alert(1)</script> &amp;"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("<b>'\"&.txt")
        member.size = len(passage)
        tar.addfile(member, io.BytesIO(passage))
    page = tmp_path / "page.html"
    inspect_data([str(path)], page)
    made = page.read_text()
    assert "l\\xe4uf.tar</h1>" in made
    assert "<script>" not in made
    assert "<b>" not in made
    assert "&lt;b&gt;&#x27;&quot;&amp;</figcaption>" in made
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;amp;" in made


def test_masked_patches_are_washed_out(runs: SmallRuns, tmp_path: Path) -> None:
    picture = picture_of(runs, "image", run_dir=tmp_path)
    value = np.full((3, 16, 16), 255, np.uint8)
    masked = np.zeros(16, bool)
    masked[[1, 2]] = True
    found = pixels(drawn(picture, Shown("a", None, value, masked)))
    assert found.shape == (400, 400, 3)
    patches = found.reshape(4, 100, 4, 100, 3)[:, 20:80, :, 20:80].mean(axis=(1, 3))
    grey = 255 * (0.2 + 0.8 * 0.5)
    for number, patch in enumerate(patches.reshape(16, 3)):
        assert patch == pytest.approx([grey if masked[number] else 255] * 3, abs=2)
    border = found[95:105, 120:180].reshape(-1, 3)
    assert (np.abs(border - [224, 123, 0]).sum(axis=1) < 60).any()
    inner = found[20:80, 195:205].reshape(-1, 3)
    assert not (np.abs(inner - [224, 123, 0]).sum(axis=1) < 60).any()
    value = np.full((3, 16, 16), 64, np.uint8)
    found = pixels(drawn(picture, Shown("a", None, value, masked)))
    assert found[350, 350].tolist() == pytest.approx([64] * 3, abs=2)
    plain = picture.decode(image(np.random.default_rng(0), 0))
    assert drawn(picture, Shown("a", None, plain, None)).axes[0].collections[:] == []


def test_masked_spans_are_where_their_frames_are(runs: SmallRuns, tmp_path: Path) -> None:
    picture = picture_of(runs, "audio", run_dir=tmp_path)
    value = np.sin(np.arange(800) / 5).astype(np.float32)
    masked = np.zeros(38, bool)
    masked[2:5], masked[30] = True, True
    figure = drawn(picture, Shown("a", None, value, masked))
    # a frame sees 25 samples, every 20; without masks there are no spans
    spans = [((20 * a + 2.5) / RATE, (20 * b + 2.5) / RATE) for a, b in ((2, 5), (30, 31))]
    for axes in figure.axes:
        found = [(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches]
        assert np.array(found) == pytest.approx(np.array(spans))
        assert axes.get_xlim() == pytest.approx((0, 0.2))
    silent = Shown("a", None, np.zeros(800, np.float32), None)
    assert not any(axes.patches for axes in drawn(picture, silent).axes)


def test_masked_tokens_are_marked_and_words_can_be_found(runs: SmallRuns, tmp_path: Path) -> None:
    picture = picture_of(runs, "text", run_dir=runs.run("text"))
    assert picture.note == ""
    assert picture.pipeline is not None
    passage = picture.decode({"txt": b"bala kodi <s> mune"})
    value = picture.pipeline.augment(passage, np.random.default_rng(0))
    masked = np.zeros(len(value), bool)
    masked[[0, 2]] = True
    html = picture.html(Shown("a", None, value, masked))
    assert html is not None
    spans = re.findall(r'<span class="(\w+)">(.*?)</span>', html)
    kinds = [kind for kind, _ in spans]
    assert [kind == "masked" for kind in kinds] == masked.tolist()
    assert (kinds[0], kinds[-1]) == ("masked", "frame")
    words = unescape(re.sub("<[^>]*>", "", html))
    assert words.startswith("<s> bala kodi ")
    assert words.endswith("mune</s>")
    figure = drawn(picture, Shown("a", None, value, masked))
    boxes = [patch.get_facecolor()[:3] for patch in figure.axes[0].patches]
    orange = pytest.approx((224 / 255, 123 / 255, 0), abs=0.01)
    assert sum(box == orange for box in boxes) == 2
    long = replace(Shown("a", None, np.tile(value, 60), np.tile(masked, 60)))
    assert drawn(picture, long).axes[0].texts[-1].get_text().startswith("and ")


def test_text_without_a_tokenizer_is_shown_as_characters(runs: SmallRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = str(runs.config_file("text", run))
    found = rows(inspect_data([path], tmp_path / "page.html"))
    assert found["note"].startswith("no tokenizer yet")
    assert "characters" in found
    assert not {"tokens", "masked", "padding"} & found.keys()
    assert "as it is in the shards" in (tmp_path / "page.html").read_text()
    assert not run.exists()
    trained = runs.run("text")
    before = sorted(trained.rglob("*"))
    words = [path, f"run_dir={trained}"]
    found = rows(inspect_data(words, tmp_path / "page.html"))
    assert {"tokens", "masked", "padding"} <= found.keys()
    assert "as training sees it, with its mask" in (tmp_path / "page.html").read_text()
    assert sorted(trained.rglob("*")) == before
    named = [path, f"input.tokenizer={trained / 'tokenizer.json'}"]
    assert "tokens" in rows(inspect_data(named))


def test_tensorboard_gets_the_picture(runs: SmallRuns, tmp_path: Path) -> None:
    board = tmp_path / "board"
    inspect_data([str(runs.config_file("image", tmp_path))], None, board, samples=2)
    events = EventAccumulator(str(board), size_guidance={"images": 0})
    events.Reload()
    (event,) = events.Images("inspect/image")
    png = tmp_path / "a.png"
    inspect_data([str(runs.config_file("image", tmp_path))], png, samples=2)
    shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert np.array_equal(shown, np.asarray(Image.open(png).convert("RGB")))


def test_on_the_command_line(
    runs: SmallRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    words = ["inspect", *runs.shards("image"), "--out", str(out), "--samples", "3", "--seed", "5"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("image\n")
    assert printed.endswith(f"\nwritten to {out}\n")
    expected = tmp_path / "expected.png"
    inspect_data(runs.shards("image"), expected, samples=3, seed=5)
    assert out.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.tar"], "SHARDS: no file matches 'nowhere.tar'"),
        (["https://host/*.tar?" + "s" * 300], "SHARDS: 'https://host/.*' has wildcards"),
        (["nowhere.yaml"], "config: there is no file 'nowhere.yaml'"),
        (["CONFIG", "optim.rl=1"], "optim.rl: no such key"),
        (["CONFIG", "--modality", "text"], "--modality: the config has no 'text'; it has image"),
        (["SHARD", "--modality", "sound"], "modality: there is no 'sound'"),
        (["SHARD", "--modality", "audio"], r"SHARDS: shard '.*' has no sample with a member .flac"),
        (["OTHER"], r"SHARDS: shard '.*' has no sample with a member .*found: bin"),
        (["SHARD", "--out", "a.pdf"], "--out: 'a.pdf' must end in .png, .svg or .html"),
        (["SHARD", "--out", "nowhere/a.png"], "--out: there is no folder 'nowhere'"),
        (["SHARD", "--samples", "0"], "--samples: 0 must be 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    runs: SmallRuns,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {
        "CONFIG": str(runs.config_file("image", tmp_path)),
        "SHARD": runs.shards("image")[0],
        "OTHER": shard(tmp_path / "other.tar", [{"bin": b"a"}]),
    }
    assert main(["inspect", *(known.get(word, word) for word in words)]) == UserError.exit_code
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, error)


def test_a_modality_that_cannot_be_shown_is_refused(
    runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = replace(load_modality("image"), picture=None)
    monkeypatch.setattr(module, "load_modality", lambda name: blind)
    with pytest.raises(UserError, match="image declares no picture"):
        inspect_data([str(runs.config_file("image", tmp_path))])


def test_no_start_pays_for_what_is_wanted_later() -> None:
    """Libraries that draw, probe and resample take seconds to import."""
    code = (
        "import sys, selfdistill.pretrain; from selfdistill.modalities.base import *; "
        "[load_modality(n) for n in modality_names()]; "
        "print({*sys.modules} & {'matplotlib', 'scipy', 'sklearn'})"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "set()\n"
