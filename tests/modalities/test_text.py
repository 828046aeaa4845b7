"""Text: bytes to tokens, the tokenizer that is trained, padding, masks."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizer_cases import byte_level, train_sentencepiece

from selfdistill.config import RunConfig
from selfdistill.data.loader import Source, training_batches
from selfdistill.data.plain import plain_examples
from selfdistill.data.shards import ShardSet, training_shards
from selfdistill.errors import BadSample, UserError
from selfdistill.masking import row_keys
from selfdistill.modalities.base import load_modality
from selfdistill.modalities.text.data import (
    EXTENSIONS,
    TextPipeline,
    drawn_passages,
    prepare,
    read_passage,
)
from selfdistill.modalities.text.encoder import TextEncoder
from selfdistill.modalities.text.training import train_tokenizer
from selfdistill.types import Masks, Tokens

Make = Callable[..., RunConfig]
VOCABULARY = 80


def passages(count: int = 120) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 1 + i % 6)) for i in range(60)]
    return [" ".join(rng.choice(words, 12)) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(passages(), VOCABULARY, folder)
    return folder / "tokenizer.json"


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
        ({"txt": b"  abc \r\n de\t\n"}, "  abc \r\n de\t\n"),
        ({"txt": b"\xef\xbb\xbfabc"}, "abc"),
        ({"txt": b"abc\0de"}, "abc\0de"),
        ({"txt": "gr\u00fc\u00dfe".encode()}, "gr\u00fc\u00dfe"),
        ({"json": b'{"text": "abc", "id": 3}'}, "abc"),
        ({"json": b'\xef\xbb\xbf{"text": "ab\\nc"}'}, "ab\nc"),
        ({"txt": b"first", "json": b'{"text": "second"}'}, "first"),
    ],
)
def test_passages_are_read_as_they_stand(sample: dict[str, bytes], text: str) -> None:
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
        ({"json": b""}, "undecodable json"),
        ({"json": b"{"}, "undecodable json"),
        ({"json": b"[1]"}, "json without the entry 'text'"),
        ({"json": b'{"words": "abc"}'}, "json without the entry 'text'"),
        ({"json": b'{"text": 3}'}, "a value that is no text"),
        ({"json": b'{"text": null}'}, "a value that is no text"),
        ({"json": b'{"text": ' * 100_000}, "undecodable json"),
        ({"json": b'{"text": ' + b"9" * 10_000 + b"}"}, "undecodable json"),
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


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_white_space_makes_no_difference(pipeline: TextPipeline) -> None:
    text, spread = "abc de f", " \tabc\r\n\x85de\xa0\0 \u3000f\u2028\n"
    assert pipeline.plain(spread).tolist() == pipeline.plain(text).tolist()
    assert pipeline.augment(spread, rng()).tolist() == pipeline.augment(text, rng()).tolist()
    assert 3 not in pipeline.plain(spread)


def test_special_tokens_are_text_in_training_only(pipeline: TextPipeline) -> None:
    text = "<mask> a <pad> <s> </s>"
    trained = pipeline.augment(text, rng())
    assert (trained[0], trained[-1]) == (0, 2)
    assert trained[1:-1].min() > 4
    plain = pipeline.plain(text)
    assert trained.dtype == plain.dtype == np.int64
    assert [token for token in plain if token < 5] == [0, 4, 1, 0, 2, 2]


def test_text_without_tokens_is_no_example(pipeline: TextPipeline, tmp_path: Path) -> None:
    with pytest.raises(BadSample, match="text without tokens"):
        pipeline.augment("\u2581 \u2581", rng())
    assert pipeline.plain("\u2581 \u2581").tolist() == [0, 2]
    texts = [text.encode() for text in passages(20)]
    shards = ShardSet([Path(shard(tmp_path / "a.tar", [*texts, "\u2581".encode()]))], ("txt",))
    steps = training_batches(
        {"text": Source(shards, pipeline, 21)},
        seed=0,
        accumulate=1,
        rank=0,
        world_size=1,
        start_step=0,
        steps=1,
        workers=1,
    )
    (micro_batch,) = next(steps)
    loaded = micro_batch["text"]
    assert loaded.bad == [("00020", "text without tokens", "")]
    assert len(loaded.batch.inputs) == 21
    lengths = [len(example) for _, example, _ in plain_examples(shards, pipeline, print)]
    assert lengths.index(2) == 20


def shard(path: Path, samples: list[bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for number, content in enumerate(samples):
            member = tarfile.TarInfo(f"{number:05d}.txt")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture
def new_run(tmp_path: Path, tiny_config: Make) -> Callable[..., RunConfig]:
    """Input keys to the config of a run in an empty folder."""
    samples = [text.encode() for text in passages()]
    samples[3:3] = [b"", b"\xff"]  # bad ones are left to training
    train = [shard(tmp_path / "train.tar", samples)]
    folder = tmp_path / "run"
    folder.mkdir()

    def make(encoder: dict[str, int] | None = None, **given: str) -> RunConfig:
        sections = {"encoder": {"vocab_size": VOCABULARY, **(encoder or {})}, "input": given}
        return replace(tiny_config("text", data={"train": train}, **sections), run_dir=str(folder))

    return make


def files(config: RunConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(config.run_dir).iterdir()}


def test_a_run_without_a_tokenizer_trains_one(new_run: Make) -> None:
    config = new_run()
    prepared = load_modality("text").prepare(config)
    path = Path(config.run_dir, "tokenizer.json")
    assert prepared == new_run(tokenizer=str(path))
    assert sorted(files(config)) == ["tokenizer.json", "tokenizer.model"]
    written = path.stat().st_mtime_ns
    assert prepare(config) == prepare(prepared) == prepared
    model = new_run(tokenizer=str(path.with_suffix(".model")))
    assert prepare(model) == prepared
    assert path.stat().st_mtime_ns == written


def test_a_tokenizer_learns_from_passages_all_over(new_run: Make) -> None:
    shards = training_shards(new_run().data, EXTENSIONS)
    good = passages()
    assert drawn_passages(shards, seed=0) == good
    few = drawn_passages(shards, seed=0, most=sum(len(text) for text in good) // 4)
    places = [good.index(text) for text in few]
    assert places == sorted(places)
    assert len(good) // 8 < len(few) < len(good) // 2
    assert np.histogram(places, 3, (0, len(good)))[0].min() > 3
    assert drawn_passages(shards, seed=1, most=500) != drawn_passages(shards, seed=0, most=500)


def test_passages_for_a_tokenizer_are_read_shard_by_shard(
    new_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of an archive elsewhere, or compressed, may cost all of it."""
    shards = training_shards(new_run().data, EXTENSIONS)
    numbers: list[int] = []
    read = ShardSet.read

    def noted(self: ShardSet, i: int) -> tuple[str, dict[str, bytes]]:
        numbers.append(i)
        return read(self, i)

    monkeypatch.setattr(ShardSet, "read", noted)
    drawn_passages(shards, seed=0)
    assert numbers == list(range(len(shards)))
    numbers.clear()
    drawn_passages(shards, seed=0, most=sum(map(len, passages())) // 4)
    assert len(numbers) == len(set(numbers)) > len(shards) // 8
    assert sum(after < before for before, after in pairwise(numbers)) < 5


def test_a_run_that_was_killed_before_the_conversion_goes_on(new_run: Make) -> None:
    config = new_run()
    prepare(config)
    complete = files(config)
    Path(config.run_dir, "tokenizer.json").unlink()
    config = replace(config, data=replace(config.data, train=[]))
    prepare(config)
    assert files(config) == complete


def test_a_given_model_is_converted(new_run: Make, tmp_path: Path) -> None:
    content = train_sentencepiece(passages(), vocab_size=VOCABULARY, model_type="bpe")
    (tmp_path / "given.model").write_bytes(content)
    config = new_run(tokenizer=str(tmp_path / "given.model"))
    prepared = prepare(config)
    assert list(files(config)) == ["tokenizer.json"]
    assert Path(prepared.input.tokenizer).parent == Path(config.run_dir)
    model = json.loads(Path(prepared.input.tokenizer).read_text(encoding="utf-8"))["model"]
    assert model["type"] == "BPE"
    assert prepare(config) == prepare(prepared) == prepared


def test_a_published_tokenizer_is_copied(new_run: Make, tmp_path: Path) -> None:
    given = byte_level(tmp_path / "given.json")
    config = new_run({"vocab_size": 321, "mask_id": 320}, tokenizer=str(given))
    prepared = prepare(config)
    assert files(config) == {"tokenizer.json": given.read_bytes()}
    assert prepared.input.tokenizer == str(Path(config.run_dir, "tokenizer.json"))
    plain = TextPipeline(prepared).plain("ba <mask>\tde")
    assert plain.tolist().count(320) == 1


def test_a_tokenizer_may_lie_at_home(
    new_run: Make, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tokenizer.parent))
    config = new_run(tokenizer=f"~/{tokenizer.name}")
    assert TextPipeline(config).tokenizer.path == tokenizer
    assert files(prepare(config)) == {"tokenizer.json": tokenizer.read_bytes()}


def test_a_run_has_one_tokenizer(new_run: Make, tokenizer: Path, tmp_path: Path) -> None:
    prepare(new_run(tokenizer=str(tokenizer)))
    content = train_sentencepiece(passages(), vocab_size=VOCABULARY, model_type="bpe")
    (tmp_path / "given.model").write_bytes(content)
    config = new_run(tokenizer=str(tmp_path / "given.model"))
    before = files(config)
    words = r"input\.tokenizer: .*given\.model differs from .*run/tokenizer\.json; leave the key"
    with pytest.raises(UserError, match=words):
        prepare(config)
    assert files(config) == before


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ({"vocab_size": 81}, r"encoder\.vocab_size: 81,.*tokenizer\.json is 80; set it to 80"),
        ({"mask_id": 7}, r"encoder\.mask_id: 7,.*tokenizer\.json is 4; set it to 4"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    encoder: dict[str, int], words: str, new_run: Make, tokenizer: Path
) -> None:
    config = new_run(encoder, tokenizer=str(tokenizer))
    with pytest.raises(UserError, match=words):
        prepare(config)
    assert not files(config)  # so another may be given
    prepare(new_run(tokenizer=str(tokenizer)))
    with pytest.raises(UserError, match=words):
        prepare(replace(config, input=replace(config.input, tokenizer="")))


def test_a_missing_tokenizer_is_refused(new_run: Make, tmp_path: Path) -> None:
    config = new_run(tokenizer=str(tmp_path / "none.model"))
    with pytest.raises(UserError, match=r"input\.tokenizer: cannot read .*none\.model"):
        prepare(config)


def test_long_passages_are_cropped_at_random_in_training_only(pipeline: TextPipeline) -> None:
    text = " ".join(passages(4))
    ids = pipeline.tokenizer.encode_literally(text)
    assert pipeline.plain(text).tolist() == [0, *ids[:22], 2]
    crops = [pipeline.augment(text, rng(seed)).tolist() for seed in range(40)]
    starts = []
    for crop in crops:
        assert len(crop) == 24
        assert (crop[0], crop[-1]) == (0, 2)
        starts += [i for i in range(len(ids) - 21) if ids[i : i + 22] == crop[1:-1]]
    assert len(starts) == 40
    assert min(starts) < len(ids) / 10
    assert max(starts) > 0.9 * (len(ids) - 22)
    assert pipeline.augment(text, rng(7)).tolist() == crops[7]
    short = pipeline.augment(text[:9], rng())
    assert short.tolist() == pipeline.plain(text[:9]).tolist()


def test_a_crop_may_begin_and_end_with_the_text(config: RunConfig, pipeline: TextPipeline) -> None:
    text = passages()[0]
    ids = pipeline.tokenizer.encode_literally(text)
    tight = TextPipeline(replace(config, input=replace(config.input, max_tokens=len(ids) + 1)))
    crops = {tuple(tight.augment(text, rng(seed))[1:-1]) for seed in range(20)}
    assert crops == {tuple(ids[:-1]), tuple(ids[1:])}


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


@pytest.mark.parametrize("kind", ["spans", "tokens"])
def test_each_sample_has_several_masks(kind: str, config: RunConfig) -> None:
    """The first of them is that of a run with one."""
    examples, keys, found = [np.arange(24), np.arange(11)], row_keys(0, np.arange(2)), {}
    for num_masks in (4, 1):
        mask = replace(config.mask, kind=kind, num_masks=num_masks, mask_prob=0.5)
        batch = TextPipeline(replace(config, mask=mask)).collate(examples, keys)
        assert len(batch.inputs) == 2
        assert batch.masks is not None
        found[num_masks] = batch.masks
    masked, valid = found[4].masked, torch.tensor([24, 11]).repeat_interleave(4)
    assert torch.equal(masked[::4], found[1].masked)
    assert len({tuple(row.tolist()) for row in masked}) == 8
    assert not masked[4:, 11:].any()
    assert found[4].filler is not None
    seen = (~found[4].filler).sum(1)
    assert torch.equal(seen + masked.sum(1), valid)
    if kind == "tokens":
        assert torch.equal(seen, valid // 2)


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
    return TextEncoder(config)


@torch.no_grad()
def test_tokens_drop_out_before_the_blocks(tiny_config: Make) -> None:
    encoder = build_encoder(tiny_config("text", model={"dropout": 0.5}))
    entered = encoder.enter(Tokens(torch.randn(2, 9, 16))).x
    assert 0.2 < float((entered == 0).float().mean()) < 0.8


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
def test_a_spelt_padding_token_is_no_padding(config: RunConfig, pipeline: TextPipeline) -> None:
    """Its text has the same vectors alone as before a longer one."""
    encoder = build_encoder(config)
    spelt, longer = pipeline.plain("a <pad> b"), pipeline.plain("abcdefgh abcd efgh")
    assert 1 in spelt
    assert len(spelt) < len(longer)
    alone, both = (pipeline.collate(rows, None) for rows in ([spelt], [spelt, longer]))
    found = encoder.contextualise(encoder.embed(both.inputs, both.lengths))
    expected = encoder.contextualise(encoder.embed(alone.inputs, alone.lengths))
    assert torch.equal(found.x[0, : len(spelt)], expected.x[0])
    assert found.padding is not None
    assert (~found.padding).sum(1).tolist() == [len(spelt), len(longer)]


@torch.no_grad()
def test_a_second_norm_follows_the_first(config: RunConfig) -> None:
    encoder = build_encoder(replace(config, encoder=replace(config.encoder, context_norm=True)))
    plain = build_encoder(config)
    for norm in (encoder.norm, encoder.context_norm):
        norm.weight.normal_()
        norm.bias.normal_()
    plain.load_state_dict(encoder.state_dict(), strict=False)
    ids, lengths = torch.tensor([[0, 7, 8, 2], [0, 7, 2, 1]]), torch.tensor([4, 3])
    found = encoder.contextualise(encoder.embed(ids, lengths))
    once = plain.contextualise(plain.embed(ids, lengths))
    real = ids != 1
    torch.testing.assert_close(found.x[real], encoder.context_norm(once.x[real]))
    assert not found.x[~real].any()


@torch.no_grad()
def test_the_original_s_padding_is_a_normed_zero(config: RunConfig) -> None:
    compat = replace(config.compat, padding_in_features=True)
    encoder = build_encoder(replace(config, compat=compat))
    encoder.norm.bias.fill_(3.0)
    found = encoder.contextualise(encoder.embed(torch.tensor([[0, 7, 2, 1]]), torch.tensor([3])))
    assert (found.x[0, 3] == 3.0).all()
    assert not (found.x[0, :3] == 3.0).any()


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
        ({"mask": {"num_masks": 0}}, r"mask\.num_masks: 0 must be 1 or more"),
        ({"mask": {"kind": "tokens", "mask_prob": 1.0}}, r"mask\.mask_prob: 1\.0 would mask every"),
        (
            {"mask": {"num_masks": 2}, "compat": {"masked_only_teacher": True}},
            r"mask\.num_masks: 2, but with compat\.masked_only_teacher .*choose 1",
        ),
        ({"objective": {"cls_loss": 0.1}}, r"objective\.cls_loss: 0\.1 needs a class token"),
        ({"encoder": {"prenet_depth": -1}}, r"encoder\.prenet_depth: -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], words: str, tiny_config: Make
) -> None:
    with pytest.raises(UserError, match=words):
        tiny_config("text", **changes)


def test_json_and_plain_text_give_the_same_passage(pipeline: TextPipeline) -> None:
    text = passages()[1]
    plain = pipeline.decode({"txt": text.encode()})
    assert plain == pipeline.decode({"json": json.dumps({"text": text}).encode()}) == text
