"""Names of files to keys."""

import pytest
from webdataset.tariterators import base_plus_ext

from selfdistill.packing.keys import MAX_KEY, piece_key, sample_key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("103/1240/103-1240-0000.flac", "103/1240/103-1240-0000"),
        ("a.b c.v1.JPEG", "a_b_c_v1"),
        ("wiki.part-00.jsonl.gz", "wiki_part-00"),
        ("2024.01/x.wav", "2024_01/x"),
        ("\u00fcber \u4e2d\u6587.png", "\u00fcber_\u4e2d\u6587"),
        ("u\u0308.png", "\u00fc"),
        ("odd\n<>'\"$@~\udcff.wav", "odd_________"),
        ("no_suffix", "no_suffix"),
        (".wav", "_wav"),
        ("a.jsonl.GZ", "a"),
    ],
)
def test_a_key_has_no_dot_and_nothing_odd(name: str, key: str) -> None:
    assert sample_key(name) == key
    assert base_plus_ext(f"{key}.flac") == (key, "flac")


def test_long_names_keep_their_end_and_differ() -> None:
    names = [f"{'folder/' * 30}{start}{'x' * 100}end.wav" for start in "ab"]
    keys = [sample_key(name) for name in names]
    assert keys[0] != keys[1]
    assert all(key.endswith("xend") and len(key.encode()) <= MAX_KEY for key in keys)
    assert len(sample_key("\u4e2d" * 100 + ".wav").encode()) <= MAX_KEY
    just = "x" * MAX_KEY
    assert sample_key(f"{just}.wav") == just


def test_parts_of_an_input_have_keys_that_no_input_has() -> None:
    assert piece_key("a", -1, 0) == "a"
    assert piece_key("a", 3, 0) == "a@00003"
    assert piece_key("a", 3, 2) == "a@00003-002"
    assert sample_key("a@00003.wav") == "a_00003"
