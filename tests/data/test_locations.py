import errno
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from rough_server import access

from selfdistill.config import DataConfig
from selfdistill.data import locations
from selfdistill.data.elsewhere.address import Access, Remote
from selfdistill.data.elsewhere.transport import Broken
from selfdistill.data.locations import Location, resolve
from selfdistill.errors import UserError
from selfdistill.redaction import redacted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with some shards in it."""
    folder = tmp_path / "with space \u00e4 [x]"
    folder.mkdir()
    for name in ("b-000.tar", "b-001.tar.gz", "a.tgz", "notes.txt", "b-000.tar.index"):
        (folder / name).touch()
    monkeypatch.chdir(folder)
    return folder


def names(*patterns: str) -> list[str]:
    return [location.name for location in resolve(patterns)]


def urls(found: Sequence[Location]) -> list[str]:
    return [location.url for location in found if isinstance(location, Remote)]


class TestHere:
    def test_path_glob_braces_folder(self, folder: Path) -> None:
        assert names(f"{folder}/b-000.tar") == ["b-000.tar"]
        assert names("b-*") == ["b-000.tar", "b-001.tar.gz"]
        assert names("b-{000..001}.tar*", "a.tgz") == ["b-000.tar", "b-001.tar.gz", "a.tgz"]
        assert names(str(folder)) == ["a.tgz", "b-000.tar", "b-001.tar.gz"]

    @pytest.mark.parametrize(
        ("pattern", "words"),
        [
            ("gone.tar", "no file matches 'gone.tar'; check the path"),
            ("gone-*.tar", "no file matches 'gone-\\*.tar'"),
            ("b-{000..002}.tar*", "no file matches 'b-002.tar\\*' \\(part of 'b-{000..002}.tar"),
            ("b-{000.tar", "unbalanced braces"),
            ("sample://image/nothing.tar", "there is no 'sample://image/nothing.tar'; choose from"),
            ("sample://../shards.py", "there is no"),
        ],
    )
    def test_no_match(self, folder: Path, pattern: str, words: str) -> None:
        with pytest.raises(UserError, match=f"^eval.tasks.x.test: .*{words}"):
            resolve([pattern], key="eval.tasks.x.test")

    def test_hidden_shards_of_a_folder_are_left_out(self, folder: Path) -> None:
        (folder / "._b-000.tar").touch()
        assert names(str(folder)) == ["a.tgz", "b-000.tar", "b-001.tar.gz"]

    def test_a_folder_that_cannot_be_read(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbidden(path: Path) -> NoReturn:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "iterdir", forbidden)
        words = f"data.train: cannot read folder '{re.escape(str(folder))}': Permission denied"
        with pytest.raises(UserError, match=words):
            resolve([str(folder)])

    def test_nothing_named(self) -> None:
        with pytest.raises(UserError, match=r"data.train: is empty"):
            resolve([])

    def test_folder_without_shards(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"has no .tar, .tar.gz, .tgz file; .* pack"):
            resolve([str(tmp_path)])

    def test_sample_of_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "samples" / "image").mkdir(parents=True)
        shard = tmp_path / "samples" / "image" / "train.tar.gz"
        shard.touch()
        monkeypatch.setattr(locations, "SAMPLES", tmp_path / "samples")
        assert resolve(["sample://image/train.tar.gz"]) == [shard]
        with pytest.raises(UserError, match=r"choose from sample://image/train.tar.gz"):
            resolve(["sample://image/test.tar.gz"])


class TestElsewhere:
    def test_urls_and_brace_lists(self) -> None:
        found = resolve(["https://host/d/s-{00..02}.tar?x={a,b}", "s3://bucket/t-{8..10}.tar.gz"])
        assert urls(found) == [
            *(f"https://host/d/s-0{i}.tar?x={x}" for i in range(3) for x in "ab"),
            *(f"s3://bucket/t-{i}.tar.gz" for i in (8, 9, 10)),
        ]
        assert names("http://[::1]:8000/whatever?file=a") == ["whatever"]

    def test_a_file_of_such_a_name_is_a_file(self, folder: Path) -> None:
        (folder / "s3:b.tar").touch()
        assert resolve(["s3:b.tar"]) == [Path("s3:b.tar")]

    def test_lists_of_stores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tries = []

        def matches(url: str, timeout: float) -> list[str]:
            tries.append((url, timeout))
            if len(tries) == 1:
                raise Broken("the connection failed")
            return ["s3://b/1.tar", "s3://b/1.tar.index", "s3://b/2.tar.gz"]

        def members(url: str, timeout: float) -> list[str] | None:
            return {"s3://b/d": ["s3://b/d/x.tgz", "s3://b/d/README.md"], "s3://b/e": []}.get(url)

        monkeypatch.setattr(locations, "matches", matches)
        monkeypatch.setattr(locations, "members", members)
        monkeypatch.setattr("selfdistill.data.elsewhere.remote.FIRST_PAUSE", 0.01)
        found = resolve(["s3://b/*", "s3://b/d", "s3://b/file"], access=access(Path("x")))
        expected = ["s3://b/1.tar", "s3://b/2.tar.gz", "s3://b/d/x.tgz", "s3://b/file"]
        assert urls(found) == expected
        assert tries == [("s3://b/*", 5.0)] * 2
        with pytest.raises(UserError, match=r"data.train: 's3://b/e' has no .tar"):
            resolve(["s3://b/e"])

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            (
                "pipe:touch CANARY",
                "'pipe:touch ... .*' would run a command in a shell, which is re",
            ),
            ("PIPE:touch CANARY", "cannot read 'pipe:...'; give local paths, or URLs with"),
            ("pipe://touch CANARY", "would run a command"),
            (
                "file:///etc/passwd",
                "'file:///etc/passwd' is no path; name local files without file",
            ),
            ("local:///etc/passwd", "is no path"),
            ("FILE:///etc/passwd", "is no path"),
            ("memory://x.tar", "cannot read 'memory://x.tar'; give"),
            ("simplecache::s3://b/a.tar", "cannot read 'simplecache::s3://b/a.tar'; give"),
            ("s3:b", "cannot read 's3:b'; give local paths, or URLs with http://"),
            ("s3://b/x::file:///etc/passwd", "chains file systems with ::"),
            ("https://host/a.zip::file:///etc/passwd", "chains file systems with ::"),
            ("zip://a.tar::https://host/a.zip", "cannot read 'zip://a.tar::https"),
            ("https://host/a.tar;touch CANARY", "holds ';', which a shell would take"),
            ("https://host/$(touch CANARY).tar", r"holds '\$\(', which a shell"),
            ("https://host/`touch CANARY`.tar", "holds '`', which a shell"),
            ("s3://b/a.tar|touch CANARY", r"holds '\|', which a shell"),
            ("https://host/a.tar\ntouch CANARY", r"holds '\\n', which a shell"),
            ("https://host/a{1.tar", "unbalanced braces"),
            (
                "https://host/a-*.tar",
                "has wildcards, but web servers do not list their files; give",
            ),
            ("https://host/a-[0-9].tar", "has wildcards"),
            ("https://host/shards/", "is a folder, but web servers do not list their files; give"),
            ("https://host", "is a folder, but web servers do not list their files; give"),
        ],
    )
    def test_what_is_refused(
        self, url: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GOPEN_REWRITE", "https:=pipe:touch CANARY;s3:=pipe:touch CANARY;")
        with pytest.raises(UserError, match=f"^data.train: .*{words}"):
            resolve([url])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("url", ["pipe:touch CANARY", "https://host/a.tar;touch CANARY"])
    def test_what_a_command_line_cannot_allow_is_not_advised(self, url: str) -> None:
        with pytest.raises(UserError, match=r"refused; download|write it as %3B$") as raised:
            resolve([url], "SHARDS")
        assert "data.allow_pipe" not in str(raised.value)

    def test_what_may_be_allowed(self) -> None:
        limits = access(Path("x"), allow_pipe=True)
        found = resolve(["pipe:cat s-{0..1}.tar", "https://host/a;b.tar"], access=limits)
        assert urls(found) == ["pipe:cat s-0.tar", "pipe:cat s-1.tar", "https://host/a;b.tar"]
        with pytest.raises(UserError, match="is no path"):
            resolve(["file:///etc/passwd"], access=limits)

    @pytest.mark.parametrize(
        "url", ["https://me:sesame@host/*.tar", "https://host/*.tar?s=sesame", "x://me:sesame@h/a"]
    )
    def test_errors_hold_no_secrets(self, url: str) -> None:
        with pytest.raises(UserError) as raised:
            resolve([url])
        assert "sesame" not in str(raised.value)

    @pytest.mark.parametrize(
        ("scheme", "package"),
        [
            *[("hf", "huggingface_hub"), ("s3", "s3fs"), ("s3a", "s3fs")],
            *[("gs", "gcsfs"), ("gcs", "gcsfs")],
            *[("az", "adlfs"), ("abfs", "adlfs"), ("abfss", "adlfs")],
        ],
    )
    def test_missing_packages_are_named(
        self, scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, "fsspec.implementations.hf", raising=False)
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
        with pytest.raises(UserError) as raised:
            resolve([f"{scheme}://b/a.tar"])
        told = f"data.train: '{scheme}://b/a.tar' needs the package {package}, which cannot be "
        assert str(raised.value).startswith(told + "imported (")
        assert str(raised.value).endswith(f"); pip install {package}")

    @pytest.mark.parametrize("url", ["s3://KEY:se/same@b/a.tar", "az://b/a.tar?sig=sesame"])
    def test_stores_take_no_credentials_from_urls(self, url: str) -> None:
        with pytest.raises(UserError, match="holds credentials, which are not read from") as raised:
            resolve([url])
        assert "same" not in str(raised.value)

    @pytest.mark.parametrize(
        "name", ["https://me:x@host/a.tar", "https://host/a.tar?x=1", "pipe:curl x"]
    )
    def test_what_a_run_kept_is_not_enough(self, name: str) -> None:
        limits = access(Path("x"), allow_pipe=True)
        assert urls(resolve([name], access=limits)) == [name]
        with pytest.raises(UserError, match=r"some.key: '.*\.\.\..*' lacks what may be a secret"):
            resolve([redacted(name)], "some.key", limits)


def test_settings() -> None:
    given = Access.of(DataConfig(cache_dir="~/x", cache_gb=1.5, timeout=7.0, allow_pipe=True))
    assert given == Access(Path.home() / "x", 1_500_000_000, 7.0, True)
    default = Access.of(DataConfig())
    assert default.cache_folder == Path.home() / ".cache/selfdistill/shards"
    assert not default.allow_pipe
