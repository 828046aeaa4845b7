"""Recordings to clips."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from raw_data import RATE, noise, packed, samples, skipped, sound, write_sound

from selfdistill.data.shards import ShardSet
from selfdistill.errors import UserError
from selfdistill.modalities.audio import pack as audio_pack
from selfdistill.modalities.audio.data import EXTENSIONS, seconds
from selfdistill.modalities.audio.recordings import quiet_place, read_values
from selfdistill.packing.declaration import Job
from selfdistill.packing.entries import Input

FORMATS = ("wav", "flac", "mp3", "ogg", "opus")


def with_pauses(length: float, pauses: list[float], rate: int = RATE) -> np.ndarray:
    """Noise with 0.2 seconds of silence around the given times."""
    values = noise(length, rate=rate)
    for pause in pauses:
        values[int((pause - 0.1) * rate) : int((pause + 0.1) * rate)] = 0
    return values


def about(out: Path) -> dict[str, dict[str, Any]]:
    return {key: json.loads(members["json"]) for key, members in samples(out).items()}


def test_files_that_fit_are_copied(tmp_path: Path) -> None:
    for name in FORMATS:
        rate = 8000 if name in ("mp3", "opus") else RATE
        write_sound(tmp_path / "in" / f"{name} clip.{name}", noise(1.5, rate=rate), rate)
    packed("audio", tmp_path / "in", tmp_path / "out")
    found = samples(tmp_path / "out")
    for name in FORMATS:
        members = found[f"{name}_clip"]
        assert list(members) == [name, "json"]
        assert members[name] == (tmp_path / "in" / f"{name} clip.{name}").read_bytes()
    assert about(tmp_path / "out")["flac_clip"] == {
        "path": "flac clip.flac",
        "start": 0.0,
        "seconds": 1.5,
        "sampling_rate": RATE,
    }


def test_long_ones_are_cut_where_they_are_quiet(tmp_path: Path) -> None:
    """Pieces are about equal: 3 of 3.33 s; the pauses lie within 0.4 s before those ends."""
    values = with_pauses(10, pauses=[3.1, 6.5])
    write_sound(tmp_path / "in/a.wav", values, subtype="PCM_16")
    packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=4.0)
    found, rows = samples(tmp_path / "out"), about(tmp_path / "out")
    keys = ["a@00000", "a@00001", "a@00002"]
    assert sorted(found) == keys
    assert rows[keys[1]]["start"] == pytest.approx(3.1, abs=0.08)
    assert rows[keys[2]]["start"] == pytest.approx(6.5, abs=0.08)
    pieces = [sound(found[key]["flac"])[0] for key in keys]
    whole, _ = soundfile.read(tmp_path / "in/a.wav", dtype="int16", always_2d=True)
    assert np.array_equal(np.concatenate(pieces), whole)
    lengths = [len(piece) / RATE for piece in pieces]
    assert max(lengths) <= 4.0
    assert [rows[key]["seconds"] for key in keys] == pytest.approx(lengths, abs=1e-4)


@pytest.mark.parametrize("length", [4.001, 7.3, 61.7])
def test_no_clip_is_too_long_or_a_scrap(length: float, tmp_path: Path) -> None:
    """Loud all the way, there is no place to cut, and they are cut all the same."""
    write_sound(tmp_path / "in/a.flac", noise(length))
    packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=4.0)
    rows = about(tmp_path / "out").values()
    assert max(row["seconds"] for row in rows) <= 4.0
    assert min(row["seconds"] for row in rows) >= 1.6
    assert sum(row["seconds"] for row in rows) == pytest.approx(int(length * RATE) / RATE, abs=1e-2)


def test_one_that_just_fits_is_not_cut(tmp_path: Path) -> None:
    write_sound(tmp_path / "in/a.flac", noise(4.0))
    packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=4.0)
    assert list(samples(tmp_path / "out")) == ["a"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_be_cut(name: str, tmp_path: Path) -> None:
    rate = 8000
    path = write_sound(tmp_path / "in" / f"a.{name}", noise(9.0, rate=rate, channels=2), rate)
    packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=4.0)
    found = samples(tmp_path / "out")
    assert len(found) == 3
    whole, there = soundfile.read(path, dtype="int16", always_2d=True)
    pieces = [sound(found[key]["flac"]) for key in sorted(found)]
    assert {rate for _, rate in pieces} == {there}
    assert {values.shape[1] for values, _ in pieces} == {2}
    total = sum(len(values) for values, _ in pieces)
    assert total == pytest.approx(len(whole), abs=0.02 * there)


def test_a_part_of_an_mp3_is_what_it_is_in_the_whole() -> None:
    """Also where less than a frame back was sought."""
    rate, out = 44_100, io.BytesIO()
    soundfile.write(out, noise(4.0, rate=rate), rate, format="MP3", bitrate_mode="VARIABLE")
    whole, _ = soundfile.read(io.BytesIO(out.getvalue()), dtype="float32", always_2d=True)
    with soundfile.SoundFile(io.BytesIO(out.getvalue())) as file:
        for first in range(rate, 3 * rate, 1000):
            file.seek(first)
            file.read(1000)
            part = read_values(file, first + 300, first + 2300, 0)
            assert np.allclose(part, whole[first + 300 : first + 2300], atol=1e-4)


def test_the_rate_can_be_changed(tmp_path: Path) -> None:
    time = np.arange(3 * 8000) / 8000
    tone = 0.4 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    write_sound(tmp_path / "in/two.wav", np.stack([tone, -0.5 * tone], axis=1), 8000)
    write_sound(tmp_path / "in/as_is.flac", noise(1.0))
    write_sound(tmp_path / "in/both.flac", noise(1.0, channels=2))
    packed("audio", tmp_path / "in", tmp_path / "out", rate=RATE, max_seconds=4.0)
    found = samples(tmp_path / "out")
    assert found["as_is"]["flac"] == (tmp_path / "in/as_is.flac").read_bytes()
    assert sound(found["both"]["flac"])[0].shape == (RATE, 1)
    values, rate = sound(found["two"]["flac"])
    assert (values.shape, rate) == ((3 * RATE, 1), RATE)
    spectrum = np.abs(np.fft.rfft(values[:, 0]))
    assert np.argmax(spectrum) == 3 * 440
    assert np.abs(values[500:-500]).max() == pytest.approx(0.1 * 32768, rel=0.02)
    assert about(tmp_path / "out")["two"]["sampling_rate"] == RATE


@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT", "DOUBLE", "PCM_U8"])
def test_other_samples_become_16_bits(subtype: str, tmp_path: Path) -> None:
    values = noise(5.0)
    values[:3] = [[1.0], [-1.0], [0.25]]
    path = write_sound(tmp_path / "in/a.wav", values, subtype=subtype)
    packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=4.0)
    found = samples(tmp_path / "out")
    cut = np.concatenate([sound(found[key]["flac"])[0] for key in sorted(found)])
    whole, _ = soundfile.read(path, dtype="float64", always_2d=True)
    assert np.abs(cut / 32768 - whole).max() <= 1.01 / 32768
    assert cut[0] == 32767 - 255 * (subtype == "PCM_U8")


def test_what_is_louder_than_full_scale_is_not_clipped(tmp_path: Path) -> None:
    loud = 4 * noise(5.0)
    write_sound(tmp_path / "in/loud.wav", loud, subtype="FLOAT")
    write_sound(tmp_path / "in/soft.wav", 0.1 * loud, subtype="FLOAT")
    lines = packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=6.0, rate=2 * RATE)
    packed("audio", tmp_path / "in", tmp_path / "cut", max_seconds=4.0)
    said = "louder than full scale, so made quieter; its json says by how much"
    assert f"  1 x {said}" in lines
    assert json.loads((tmp_path / "cut/summary.json").read_text())["changed"] == {said: 2}
    found, scales = samples(tmp_path / "cut"), about(tmp_path / "cut")
    cut = [sound(found[f"loud@0000{i}"]["flac"])[0] / 32768 for i in range(2)]
    cut = [part / scales[f"loud@0000{i}"]["scaled"] for i, part in enumerate(cut)]
    assert np.abs(np.concatenate(cut) - loud).max() < 1e-4
    assert "scaled" not in scales["soft@00000"]


def test_what_cannot_be_used_is_skipped(tmp_path: Path) -> None:
    root = tmp_path / "in"
    good = write_sound(root / "good.flac", noise(1.5))
    write_sound(root / "short.wav", noise(0.4))
    write_sound(root / "nan.wav", np.full((RATE, 1), np.nan, np.float32), subtype="FLOAT")
    write_sound(root / "nan_long.wav", np.full((5 * RATE, 1), np.inf, np.float32), subtype="FLOAT")
    write_sound(root / "slow.wav", noise(1.5), rate=500)
    write_sound(root / "nine.wav", noise(5.0, channels=9))
    write_sound(root / "header.wav", noise(0.0))
    (root / "empty.wav").write_bytes(b"")
    (root / "words.mp3").write_bytes(b"this is not sound " * 50)
    data = good.read_bytes()
    (root / "cut.flac").write_bytes(data[: len(data) // 2])
    bomb = bytearray(data)
    bomb[21:26] = b"\xff" * 5  # the number of samples in STREAMINFO
    (root / "bomb.flac").write_bytes(bytes(bomb))
    packed("audio", root, tmp_path / "out", min_seconds=0.5)
    assert list(samples(tmp_path / "out")) == ["good"]
    assert "object at" not in (tmp_path / "out/skipped.jsonl").read_text()  # differs between runs
    assert skipped(tmp_path / "out") == {
        "short.wav": "shorter than --min-seconds",
        "nan.wav": "audio with NaN or infinity",
        "nan_long.wav (0)": "audio with NaN or infinity",
        "nan_long.wav (1)": "audio with NaN or infinity",
        "nan_long.wav (2)": "audio with NaN or infinity",
        "slow.wav": "sampling rate outside 1000 to 400000 Hz",
        "nine.wav": "more than the 8 channels of FLAC; --rate mixes them down to one",
        "header.wav": "empty audio",
        "empty.wav": "empty audio",
        "words.mp3": "undecodable audio",
        "cut.flac": "undecodable audio",
        "bomb.flac": "length unknown or above 100 hours",
    }


@pytest.mark.parametrize("announced", [0, 4 * RATE])
def test_a_wav_that_holds_more_than_it_announces_is_skipped(announced: int, tmp_path: Path) -> None:
    write_sound(tmp_path / "in/good.wav", noise(1.5))
    for name, length in (("fits.wav", 5.0), ("long.wav", 40.0)):
        path = write_sound(tmp_path / "in" / name, noise(length), subtype="PCM_16")
        content = bytearray(path.read_bytes())
        content[40:44] = struct.pack("<I", announced)
        path.write_bytes(content)
    lines = packed("audio", tmp_path / "in", tmp_path / "out")
    reason = (
        "WAV that holds more than its header announces: it is still being written, or was not "
        "closed; repair its header, for example with sox --ignore-length"
    )
    detail = f"{announced:,} bytes of audio announced, {10 * RATE:,} there"
    assert f"  2 x {reason}, such as fits.wav ({detail})" in lines
    assert list(samples(tmp_path / "out")) == ["good"]
    assert skipped(tmp_path / "out") == {"fits.wav": reason, "long.wav": reason}


def test_what_training_cannot_open_is_written_as_flac(tmp_path: Path) -> None:
    """It has no file name to go by, as an MP3 needs that does not begin with a frame."""
    write_sound(tmp_path / "in/plain.mp3", noise(2.0, rate=16000), 16000)
    data = (tmp_path / "in/plain.mp3").read_bytes()
    (tmp_path / "in/late.mp3").write_bytes(bytes(200) + data)
    (tmp_path / "in/inside.mp3").write_bytes(data[333:])
    packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=4.0)
    found = samples(tmp_path / "out")
    assert found["plain"]["mp3"] == data
    assert [list(found[key]) for key in ("late", "inside")] == [["flac", "json"]] * 2
    for members in found.values():
        assert seconds(members) > 1.0


def test_the_end_of_a_file_may_be_missing(tmp_path: Path) -> None:
    """An MP3 says in its first frame how long it is."""
    path = write_sound(tmp_path / "in/a.mp3", noise(9.0, rate=16000), 16000)
    write_sound(tmp_path / "in/b.mp3", noise(2.0, rate=16000), 16000)
    for name, share in (("a", 0.5), ("b", 0.5)):
        path = tmp_path / "in" / f"{name}.mp3"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=4.0, min_seconds=1.0)
    assert sorted(samples(tmp_path / "out")) == ["a@00000", "a@00001"]
    assert skipped(tmp_path / "out") == {
        "a.mp3 (2)": "ends before its header says",
        "b.mp3": "ends before its header says",
    }


def test_the_sidecar_has_the_lengths(tmp_path: Path) -> None:
    for i in range(6):
        write_sound(tmp_path / "in" / f"{i}.flac", noise(0.5 + i))
    packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=4.0)
    shards = ShardSet(sorted((tmp_path / "out").glob("*.tar")), EXTENSIONS)
    lengths = shards.lengths(lambda members: pytest.fail("measured anew"))
    assert len(lengths) == 4 + 2 * 2
    for i in range(len(shards)):
        assert seconds(shards.read(i)[1]) == pytest.approx(lengths[i], abs=1e-4)
    assert sum(lengths) == pytest.approx(0.5 * 6 + 15, abs=1e-3)


def test_a_manifest_of_fairseq(tmp_path: Path) -> None:
    root = tmp_path / "sound"
    write_sound(root / "x/a.flac", noise(1.0))
    write_sound(root / "y/a.flac", noise(1.0, seed=1))
    lines = f"{root}\nx/a.flac\t4000\ny/a.flac\t4000\nz.flac\t9\n"
    (tmp_path / "train.tsv").write_text(lines, encoding="utf-8-sig")
    packed("audio", tmp_path / "train.tsv", tmp_path / "out")
    found = samples(tmp_path / "out")
    assert found["y/a"]["flac"] == (root / "y/a.flac").read_bytes()
    assert sorted(found) == ["x/a", "y/a"]
    assert skipped(tmp_path / "out") == {"z.flac": "no such file"}
    detail = json.loads((tmp_path / "out/skipped.jsonl").read_text())["detail"]
    assert detail == str(root / "z.flac")


def test_a_manifest_of_nemo_names_parts_of_files(tmp_path: Path) -> None:
    root = tmp_path / "sound"
    path = write_sound(root / "x/long.wav", noise(6.0), subtype="PCM_16")
    write_sound(root / "y/b.sph.wav", noise(1.0))
    rows = [
        {"audio_filepath": str(path), "duration": 1.5, "offset": 0.25, "text": "one"},
        {"audio_filepath": str(path), "duration": 2.0, "offset": 3.0},
        {"audio_filepath": str(root / "y/b.sph.wav"), "duration": 1.0},
        {"audio_filepath": str(path), "duration": 1.0, "offset": 7.0},
    ]
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, rows)))
    packed("audio", tmp_path / "train.json", tmp_path / "out", max_seconds=4.0)
    found = samples(tmp_path / "out")
    whole, _ = soundfile.read(path, dtype="int16", always_2d=True)
    assert sorted(found) == ["x/long", "x/long~2", "y/b_sph"]
    assert np.array_equal(sound(found["x/long"]["flac"])[0], whole[1000:7000])
    assert np.array_equal(sound(found["x/long~2"]["flac"])[0], whole[12000:20000])
    assert list(found["y/b_sph"]) == ["wav", "json"]
    assert about(tmp_path / "out")["x/long~2"]["start"] == 3.0
    assert skipped(tmp_path / "out") == {"x/long.wav": "shorter than --min-seconds"}


def test_relative_paths_of_a_manifest_start_there(tmp_path: Path) -> None:
    write_sound(tmp_path / "lists/clips/a.wav", noise(1.0))
    rows = tmp_path / "lists/train.jsonl"
    content = json.dumps({"audio_filepath": "clips/a.wav"})
    rows.write_text(content, encoding="utf-8-sig")
    packed("audio", rows, tmp_path / "out")
    assert list(samples(tmp_path / "out")) == ["clips/a"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", "/\nx.flac 4000\n", "line 2 of '.*a.tsv' is no 'path, tab, number of samples'"),
        ("a.tsv", "id\tpath\nx\ty.flac\n", "line 2 of '.*a.tsv'"),
        ("a.jsonl", '{"audio": "x.wav"}', "line 1 of '.*' is no object with audio_filepath"),
        ("a.jsonl", '\n{"audio_filepath": "x", "offset": -1}', "line 2"),
        ("a.jsonl", '{"audio_filepath": "\\ud800"}', "line 1"),
        ("a.json", "[\n]", "line 1"),
        ("a.json", "\0", "line 1 of '.*' is no text"),
    ],
)
def test_manifests_of_something_else(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"^SOURCE: {words}"):
        packed("audio", tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_seconds": 0.0}, "--max-seconds: 0.0 must be more than 0"),
        ({"max_seconds": 1e6}, "--max-seconds: 1000000.0 .* no more than 100 hours"),
        ({"min_seconds": 1.0}, "--min-seconds: 1.0 must be between 0 and a quarter"),
        ({"rate": 500}, "--rate: 500 must be between 1000 and 400000 Hz"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        packed("audio", tmp_path, tmp_path / "out", **options)


def test_a_long_file_is_never_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sound(tmp_path / "a.wav", noise(60.0))
    most = 0
    read: Callable[..., Any] = soundfile.SoundFile.read

    def watched(self: soundfile.SoundFile, frames: int = -1, **more: Any) -> Any:
        nonlocal most
        assert frames >= 0
        most = max(most, frames)
        return read(self, frames, **more)

    monkeypatch.setattr(soundfile.SoundFile, "read", watched)
    packed("audio", path, tmp_path / "out", max_seconds=4.0)
    assert 0 < most <= 4 * RATE


def test_the_quietest_moment_is_the_last_of_equals() -> None:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(5 * RATE, np.int16), RATE, format="WAV")
    with soundfile.SoundFile(io.BytesIO(out.getvalue())) as file:
        assert quiet_place(file, 3 * RATE, 4.0) == 3 * RATE - RATE // 20


def test_a_recording_may_be_shorter_than_it_was(tmp_path: Path) -> None:
    """Not what is asked for, but what is there decides."""
    path = write_sound(tmp_path / "a.wav", noise(1.0))
    source = Input(str(path), "a.wav", start=0.5, stop=9.0, size=path.stat().st_size, key="a")
    job = Job(tmp_path, audio_pack.AudioOptions(min_seconds=0.1))
    ((number, *_, start, stop, _, length),) = audio_pack._clips(job.options, source)
    assert (number, start, stop, length) == (-1, RATE // 2, RATE, 0.5)


def test_pieces_have_the_class_of_their_recording_s_folder(tmp_path: Path) -> None:
    write_sound(tmp_path / "in/bark/a.wav", noise(1.5))
    write_sound(tmp_path / "in/song/b.wav", noise(9.0))
    packed("audio", tmp_path / "in", tmp_path / "out", max_seconds=4.0, labels="folder")
    found = {key: int(members["cls"]) for key, members in samples(tmp_path / "out").items()}
    assert found == {"bark/a": 0, **{f"song/b@0000{i}": 1 for i in range(3)}}
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["bark", "song"]
