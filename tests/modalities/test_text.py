"""Text: bytes to tokens, the tokenizer that is trained, padding, masks."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch

from selfdistill.config import RunConfig
from selfdistill.errors import BadSample, UserError
from selfdistill.masking import row_keys
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.text.data import TextPipeline, prepare, read_passage
from selfdistill.modalities.text.encoder import TextEncoder
from selfdistill.modalities.text.tokenizer import load_tokenizer, train_tokenizer
from selfdistill.types import Masks

Make = Callable[..., RunConfig]
VOCABULARY = 80


def passages(count: int = 120) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 1 + i % 6)) for i in range(60)]
    return [" ".join(rng.choice(words, 12)) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(passages(), VOCABULARY, path)
    return path


@pytest.fixture
def config(tokenizer: Path, tiny_config: Make) -> RunConfig:
    return tiny_config(
        "text", encoder={"vocab_size": VOCABULARY}, input={"tokenizer": str(tokenizer)}
    )


@pytest.fixture
def pipeline(config: RunConfig) -> TextPipeline:
    return TextPipeline(config)


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        ({"txt": b"abc de"}, "abc de"),
        ({"txt": b"  abc \r\n de\t\n"}, "abc de"),
        ({"txt": b"\xef\xbb\xbfabc"}, "abc"),
        ({"txt": b"abc\0de"}, "abc de"),
        ({"txt": "gr\u00fc\u00dfe".encode()}, "gr\u00fc\u00dfe"),
        ({"json": b'{"text": "abc", "id": 3}'}, "abc"),
        ({"json": b'\xef\xbb\xbf{"text": "ab\\nc"}'}, "ab c"),
        ({"txt": b"first", "json": b'{"text": "second"}'}, "first"),
    ],
)
def test_passages_are_cleaned(sample: dict[str, bytes], text: str) -> None:
    assert read_passage(sample) == text


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"txt": b""}, "empty text"),
        ({"txt": b" \r\n\t "}, "empty text"),
        ({"txt": b"\0\0"}, "empty text"),
        ({"txt": b"\xef\xbb\xbf"}, "empty text"),
        ({"txt": b"abc\xff\xfe"}, "text is not UTF-8"),
        ({"json": b"\xff"}, "text is not UTF-8"),
        ({"json": b'{"text": "\\ud800"}'}, "text is not UTF-8"),
        ({"json": b""}, "json without a text entry"),
        ({"json": b"{"}, "json without a text entry"),
        ({"json": b"[1]"}, "json without a text entry"),
        ({"json": b'{"words": "abc"}'}, "json without a text entry"),
        ({"json": b'{"text": 3}'}, "json without a text entry"),
        ({"json": b'{"text": null}'}, "json without a text entry"),
        ({"json": b'{"text": ' * 100_000}, "json without a text entry"),
        ({"json": b'{"text": ' + b"9" * 10_000 + b"}"}, "json without a text entry"),
        ({"json": b'{"text": "  "}'}, "empty text"),
    ],
    ids=range(16),
)
def test_bad_passages_are_told_apart(
    sample: dict[str, bytes], reason: str, pipeline: TextPipeline
) -> None:
    with pytest.raises(BadSample) as caught:
        pipeline.decode(sample)
    assert caught.value.reason == reason


def test_special_ids(tokenizer: Path) -> None:
    model = load_tokenizer(tokenizer)
    pieces = [model.id_to_piece(i) for i in range(5)]
    assert pieces == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert model.get_piece_size() == VOCABULARY


def test_the_spelling_of_special_tokens_is_ordinary_text(pipeline: TextPipeline) -> None:
    ids = pipeline.decode({"txt": b"<mask> <pad> <s> </s>"})
    assert ids.min() > 4


def test_text_comes_back_from_its_ids(pipeline: TextPipeline) -> None:
    text = passages()[0]
    ids = pipeline.decode({"txt": text.encode()})
    assert ids.dtype == np.int64
    assert pipeline.tokenizer.decode(ids.tolist()) == text


def test_training_is_deterministic(tokenizer: Path, tmp_path: Path) -> None:
    train_tokenizer(passages(), VOCABULARY, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == tokenizer.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.model"]


def test_a_vocabulary_that_the_text_cannot_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder\.vocab_size.*5000.*lower it or add text"):
        train_tokenizer(passages(), 5000, tmp_path / "tokenizer.model")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_with_other_ids_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(passages()),
        model_writer=model,
        vocab_size=60,
        minloglevel=2,
    )
    path = tmp_path / "other.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(UserError, match=r"input\.tokenizer.*\(1, -1, 2\).*\(0, 1, 2\)"):
        load_tokenizer(path)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_what_is_no_tokenizer_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"input\.tokenizer"):
        load_tokenizer(path)


def shard(path: Path, samples: list[bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for number, content in enumerate(samples):
            member = tarfile.TarInfo(f"{number:05d}.txt")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def test_a_run_without_a_tokenizer_trains_one(tmp_path: Path, tiny_config: Make) -> None:
    samples = [text.encode() for text in passages()]
    samples[3:3] = [b"", b"\xff"]  # bad ones are left to training
    train = [shard(tmp_path / "train.tar", samples)]
    config = tiny_config("text", encoder={"vocab_size": VOCABULARY}, data={"train": train})
    config = replace(config, run_dir=str(tmp_path))
    prepared = load_modality("text").prepare(config)
    path = tmp_path / "tokenizer.model"
    assert prepared.input.tokenizer == str(path)
    written = path.stat().st_mtime_ns
    assert prepare(config) == prepare(prepared) == prepared
    assert path.stat().st_mtime_ns == written


def test_a_tokenizer_of_another_size_is_refused(config: RunConfig) -> None:
    wrong = replace(config, encoder=replace(config.encoder, vocab_size=VOCABULARY + 1))
    with pytest.raises(UserError, match=rf"encoder\.vocab_size: 81.*set it to {VOCABULARY}"):
        prepare(wrong)


def test_long_passages_are_cropped_at_random_in_training_only(pipeline: TextPipeline) -> None:
    raw = np.arange(100, 200)
    plain = pipeline.plain(raw)
    assert plain.tolist() == [0, *range(100, 122), 2]
    starts = [pipeline.augment(raw, np.random.default_rng(i))[1] for i in range(200)]
    assert (min(starts), max(starts)) == (100, 178)
    for i in range(20):
        example = pipeline.augment(raw, np.random.default_rng(i))
        assert len(example) == 24
        assert (example[0], example[-1]) == (0, 2)
        assert (np.diff(example[1:-1]) == 1).all()
    short = pipeline.augment(raw[:5], np.random.default_rng(0))
    assert short.tolist() == [0, 100, 101, 102, 103, 104, 2]


def test_batches_tell_lengths_only_where_they_differ(pipeline: TextPipeline) -> None:
    examples = [np.array([0, 7, 8, 9, 2]), np.array([0, 7, 2])]
    batch = pipeline.collate(examples, row_keys(0, np.arange(2)), ["a", "b"])
    assert batch.inputs.tolist() == [[0, 7, 8, 9, 2], [0, 7, 2, 1, 1]]
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [5, 3]
    assert batch.masks is not None
    assert not batch.masks.masked[1, 3:].any()
    assert batch.teacher_inputs is None
    equal = pipeline.collate([examples[0]] * 2, None)
    assert equal.lengths is None
    assert equal.masks is None


def test_masks_come_from_their_keys(pipeline: TextPipeline) -> None:
    examples, keys = [np.arange(24)] * 6, row_keys(0, np.arange(6))
    whole = pipeline.collate(examples, keys).masks
    alone = pipeline.collate(examples[:1], keys[4:5]).masks
    others = pipeline.collate(examples, row_keys(1, np.arange(6))).masks
    assert whole is not None
    assert alone is not None
    assert others is not None
    assert torch.equal(alone.masked[0], whole.masked[4])
    assert not torch.equal(others.masked, whole.masked)


def test_the_original_s_teacher_sees_masked_tokens_only(config: RunConfig) -> None:
    compat = replace(config.compat, masked_only_teacher=True)
    batch = TextPipeline(replace(config, compat=compat)).collate(
        [np.arange(5, 24)] * 2, row_keys(0, np.arange(2))
    )
    assert batch.masks is not None
    assert batch.teacher_inputs is not None
    assert batch.lengths is not None  # or its padding would not be told
    masked = batch.masks.masked
    assert torch.equal(batch.teacher_inputs[masked], batch.inputs[masked])
    assert (batch.teacher_inputs[~masked] == 1).all()


def test_the_baseline_is_a_bag_of_tokens(pipeline: TextPipeline) -> None:
    features = pipeline.baseline(np.array([0, 7, 7, 9, 6, 2]))
    assert features.shape == (VOCABULARY,)
    assert features.dtype == np.float32
    assert features[[6, 7, 9]].tolist() == [0.25, 0.5, 0.25]
    assert features.sum() == 1


def build_encoder(config: RunConfig) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(config.encoder, config.model, config.input, config.compat)


@torch.no_grad()
def test_positions_start_behind_the_padding_s(config: RunConfig) -> None:
    encoder = build_encoder(config)
    assert encoder.positions.weight.shape[0] == 24 + 2
    ids = torch.tensor([[0, 7, 8, 2], [0, 7, 2, 1]])
    found = encoder.contextualise(encoder.embed(ids, torch.tensor([4, 3])))
    words, places = encoder.local.weight, encoder.positions.weight
    for row, length in ((0, 4), (1, 3)):
        for t in range(length):
            vector = words[ids[row, t]] + places[2 + t]
            torch.testing.assert_close(found.x[row, t], encoder.norm(vector))
    assert not found.x[1, 3].any()
    assert found.padding is not None
    assert found.padding.tolist() == [[False] * 4, [False, False, False, True]]
    full = encoder.contextualise(encoder.embed(torch.full((1, 24), 7), None))
    torch.testing.assert_close(full.x[0, 23], encoder.norm(words[7] + places[25]))


@torch.no_grad()
def test_the_mask_vector_is_the_mask_token_s_embedding(config: RunConfig) -> None:
    encoder = build_encoder(config)
    masks = Masks.from_bool(torch.tensor([[False, True, False]]))
    filled = encoder.fill(encoder.embed(torch.tensor([[0, 9, 2]]), None), masks)
    assert torch.equal(filled.x[0], encoder.local.weight[[0, 4, 2]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": {"max_tokens": 2}}, r"input\.max_tokens: 2 must be 3 or more"),
        ({"encoder": {"mask_id": 64}}, r"encoder\.mask_id: 64.*vocabulary of 64"),
        ({"encoder": {"mask_id": -1}}, r"encoder\.mask_id: -1"),
        ({"mask": {"mask_prob": 1.0}}, r"mask\.mask_prob: 1\.0 would mask everything"),
        ({"mask": {"mask_prob": -0.1}}, r"mask\.mask_prob: -0\.1 would mask nothing"),
        ({"mask": {"mask_length": 0}}, r"mask\.mask_length: 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], words: str, tiny_config: Make
) -> None:
    with pytest.raises(UserError, match=words):
        tiny_config("text", **changes)


def test_json_and_plain_text_give_the_same_tokens(pipeline: TextPipeline) -> None:
    text = passages()[1]
    plain = pipeline.decode({"txt": text.encode()})
    assert np.array_equal(plain, pipeline.decode({"json": json.dumps({"text": text}).encode()}))
