"""Secrets in the names of data: nothing that is written or shown holds them."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rough_server import RoughServer, running
from small_runs import SmallRuns, checkpoint

from selfdistill.cli import main
from selfdistill.config import RunConfig
from selfdistill.config_files.load import dump_config, plain_config
from selfdistill.inspection.data import inspect_data
from selfdistill.redaction import RedactingFormatter, is_redacted, redacted
from selfdistill.resume import compare_configs

NAMES = [
    ("https://me:sesame@host/a.tar", "https://...@host/a.tar"),
    ("HTTP://sesame@host/{0..3}.tar", "HTTP://...@host/{0..3}.tar"),
    ("https://me:ses@ame@host:80/a.tar", "https://...@host:80/a.tar"),
    ("https://me:x/sesame@host/a.tar", "https://...@host/a.tar"),
    ("s3://KEY:x/ses+ame@bucket/a.tar", "s3://...@bucket/a.tar"),
    ("https://host/a.tar?X-Amz-Signature=sesame&x=1", "https://host/a.tar?..."),
    ("az://box/a.tar?sv=1&sig=sesame", "az://box/a.tar?..."),
    ("pipe:curl -u me:sesame https://host/a", "pipe:curl ... (pipe-209d0eb5)"),
    ("pipe:sesame=1 curl https://host/a", "pipe:... (pipe-ece176cf)"),
]
PLAIN = [
    "data/my  train-{0..3}.tar",
    "/data/a?b*.tar",
    "sample://image/train.tar.gz",
    "https://host:8080/a@1/b.tar",
    "hf://datasets/some/thing@main/*.tar",
    "s3://bucket/part-0?.tar",
    "abfss://box@account.dfs.core.windows.net/a.tar",
    "data.allow_pipe=true",
]


@pytest.mark.parametrize(("name", "kept"), NAMES)
def test_what_is_kept_of_a_name(name: str, kept: str) -> None:
    assert redacted(name) == kept == redacted(kept)
    assert is_redacted(kept)
    assert not is_redacted(name)
    inside = redacted(f"a\nlist [{name}] of them")
    assert "ame" not in inside
    assert redacted(inside) == inside


@pytest.mark.parametrize("name", PLAIN)
def test_other_names_stay_as_they_are(name: str) -> None:
    assert redacted(name) == name
    assert not is_redacted(name)


def test_words_around_a_command_that_is_shown_stay() -> None:
    message = f"cannot read '{redacted('pipe:curl x')}': it ended\nwith exit code 1"
    assert redacted(message) == message
    # nobody can tell where a command ends
    assert redacted("train=[pipe:curl sesame] x\nnext") == "train=[pipe:...\nnext"


def with_data(config: RunConfig, *names: str) -> RunConfig:
    return replace(config, data=replace(config.data, train=[*names]))


def test_configs_differ_in_more_than_secrets(runs: SmallRuns) -> None:
    config = runs.config("image")

    def changed(old: str, new: str) -> list[str]:
        refused, found = compare_configs(
            *(plain_config(with_data(config, name)) for name in (old, new))
        )
        assert refused == []
        return found

    assert changed("https://me:sesame@host/a.tar", "https://you:other@host/a.tar") == []
    assert changed("https://host/a.tar?sig=sesame", "https://host/a.tar?sig=new") == []
    for old, new in (("https://u:sesame@host/", "a.tar"), ("pipe:curl ", "-u sesame")):
        (line,) = changed(f"{old}{new}", f"{old}b{new}")
        assert line.startswith("data.train: [")
        assert "ame" not in line


def test_labelled_sets_and_parts_are_redacted_too(runs: SmallRuns) -> None:
    config = with_data(runs.config("image"), NAMES[0][0])
    saved = yaml.safe_load(dump_config(config))
    assert saved["data"]["train"] == [NAMES[0][1]]
    joint = runs.config("joint")
    parts = {name: with_data(part, NAMES[0][0]) for name, part in joint.modalities.items()}
    assert "ame@" not in dump_config(replace(joint, modalities=parts))
    assert dump_config(replace(joint, modalities=parts)).count(NAMES[0][1]) == len(parts)


def files_with(word: bytes, *folders: Path) -> list[str]:
    paths = [path for folder in folders for path in sorted(folder.rglob("*"))]
    assert len(paths) > 10
    return [
        str(path)
        for path in paths
        if word in str(path).encode() or (path.is_file() and word in path.read_bytes())
    ]


@pytest.fixture
def server(runs: SmallRuns) -> RoughServer:
    with running() as server:
        server.serve_folder(Path(runs.shards("image")[0]).parent)
        yield server


def test_a_run_keeps_no_secret_and_goes_on(
    server: RoughServer,
    runs: SmallRuns,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"

    def train(user: str, signature: str, *words: str) -> int:
        host = server.url.replace("//", f"//{user}@")
        names = ",".join(f"{host}/{n}.tar?sig={signature}" for n in range(2))
        given = (f"data.train=[{names}]", f"data.cache_dir={cache}", *words)
        monkeypatch.setattr(sys, "argv", ["selfdistill", "pretrain", *given])
        return runs.pretrain("image", run, *given)

    assert train("me:sesame", "opensesame") == 0
    assert {user for _, _, user in server.requests} == {"Basic bWU6c2VzYW1l"}
    # another password and a fresh signature are no other data
    assert train("me:sesamo", "opensesamo", "train.steps=5") == 0
    assert checkpoint(run, 5).exists()
    assert main(["export", str(run), "--out", str(tmp_path / "encoder")]) == 0
    kept = [f"{server.url.replace('//', '//...@')}/{n}.tar?..." for n in range(2)]
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["train"] == kept
    # but other shards are
    assert train("me:sesame", "x", f"data.train=[{server.url}/1.tar?sig=opensesame]") == 2
    # and what a run keeps is not enough to read them
    assert runs.pretrain_from(run / "config.yaml", "train.steps=6") == 2
    shown = "".join(capfd.readouterr())
    assert f"data.train: '{kept[0]}' lacks what may be a secret" in shown
    for word in (b"sesam", b"c2VzYW"):
        assert files_with(word, run, cache, tmp_path / "encoder") == []
        assert word.decode() not in shown


def test_pages_hold_no_secrets(server: RoughServer, tmp_path: Path) -> None:
    url = f"{server.url.replace('//', '//me:sesame@')}/0.tar"
    table = inspect_data([url], tmp_path / "page.html", samples=1)
    assert "sesame" not in (tmp_path / "page.html").read_text() + table


def test_the_console_shows_no_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    path = tmp_path / "c.yaml"
    path.write_text("modality: image\nrun_dir: x\noptim: {lr: 'https://me:sesame@host'}\n")
    assert main(["pretrain", str(path)]) == 2
    path.write_text("data: [https://me:sesame@host/a.tar, {x]\n")
    assert main(["pretrain", str(path)]) == 2
    with pytest.raises(SystemExit):
        main(["pretrain", str(path), "--https://me:sesame@host=1"])
    error = RuntimeError("at https://me:sesame@host/a.tar")
    sys.excepthook(type(error), error, None)
    shown = capsys.readouterr().err
    assert "optim.lr: 'https://...@host' does not fit" in shown
    assert shown.endswith("RuntimeError: at https://...@host/a.tar\n")
    assert "sesame" not in shown
    record = logging.LogRecord("x", 30, "p", 1, "at %s", (error,), (type(error), error, None))
    assert "sesame" not in RedactingFormatter().format(record)
