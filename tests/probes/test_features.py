from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_shard
from vectors import WIDTH, Encoder, VectorPipeline

from selfdistill.data.ledger import Bad
from selfdistill.data.plain import Part
from selfdistill.data.shards import ShardSet
from selfdistill.errors import BadSample, DataBudgetError, HealthError
from selfdistill.probes.features import (
    UNLABELLED,
    Share,
    baseline_features,
    encoder_features,
    encoder_rows,
    gather,
)

LABELS = [0, 1, 2, None, 3, 0, 7]


@pytest.fixture
def shards(write_shard: Callable[..., Path]) -> ShardSet:
    return ShardSet([write_shard("some", LABELS)], VectorPipeline.extensions)


def true_means(shards: ShardSet) -> np.ndarray:
    pipeline = VectorPipeline()
    members = [shards.read(i)[1] for i in range(len(shards))]
    return np.stack([pipeline.decode(m).mean(axis=0) for m in members])


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_features_are_means_over_valid_tokens(shards: ShardSet, batch_size: int) -> None:
    found = encoder_features(Encoder(2.0), shards, VectorPipeline(), batch_size)
    assert [layer.shape for layer in found.layers] == [(len(LABELS), WIDTH)] * 3
    assert found.layers[1].dtype == np.float32
    # the padding is NaN, so that any of it would show
    np.testing.assert_allclose(found.layers[1], 2 * true_means(shards), atol=0.05)


def test_labels_are_in_order_and_missing_ones_marked(shards: ShardSet) -> None:
    expected = [UNLABELLED if label is None else label for label in LABELS]
    assert baseline_features(shards, VectorPipeline()).labels.tolist() == expected
    found = encoder_features(Encoder(1.0), shards, VectorPipeline(), 2)
    assert found.labels.tolist() == expected
    assert found.labels.dtype == np.int64


def test_baseline_has_one_layer(shards: ShardSet) -> None:
    found = baseline_features(shards, VectorPipeline())
    assert [layer.shape for layer in found.layers] == [(len(LABELS), WIDTH)]
    _, members = shards.read(2)
    expected = np.abs(VectorPipeline().decode(members)).mean(axis=0)
    np.testing.assert_array_equal(found.layers[0][2], expected)


def test_every_part_gets_its_mode_back(shards: ShardSet) -> None:
    encoder = Encoder(1.0).train()
    encoder.dropout.eval()
    encoder_features(encoder, shards, VectorPipeline(), 4)
    assert encoder.training
    assert not encoder.dropout.training


def test_modes_come_back_after_an_error(shards: ShardSet) -> None:
    encoder = Encoder(float("nan")).train()
    with pytest.raises(HealthError, match="layer 1 are not finite"):
        encoder_features(encoder, shards, VectorPipeline(), 4)
    assert encoder.dropout.training


def test_global_chance_is_left_alone(shards: ShardSet) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    encoder_features(Encoder(1.0).train(), shards, VectorPipeline(), 4)
    baseline_features(shards, VectorPipeline())
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


class Picky(VectorPipeline):
    """Cannot use samples of one vector, and crops those of five."""

    def decode(self, sample: Mapping[str, bytes]) -> np.ndarray:
        raw = super().decode(sample)
        if len(raw) == 1:
            raise BadSample("too short")
        return raw

    def plain(self, raw: np.ndarray) -> np.ndarray:
        return raw[:4]

    def is_cropped(self, raw: np.ndarray) -> bool:
        return len(raw) > 4


def test_bad_samples_are_left_out_and_the_others_known_by_number(shards: ShardSet) -> None:
    # samples 0 to 6 have 1 to 5 vectors, 1 and 2
    rows = list(encoder_rows(Encoder(1.0), shards, Picky(), 2))
    assert [row.numbers for row in rows] == [[1], [2, 3], [4], [6]]
    assert [row.labels for row in rows] == [[1], [2, UNLABELLED], [3], [7]]
    whole = gather(encoder_rows(Encoder(1.0), shards, Picky(), 2, whole=True))
    assert whole.numbers.tolist() == [1, 2, 3, 6]


def test_what_is_cropped_is_known_by_number(tmp_path: Path) -> None:
    """Keys of one shard may come again in another."""

    def written(name: str, *vectors: int) -> Path:
        tokens = (np.ones((count, WIDTH), dtype=np.float32) for count in vectors)
        return write_shard(tmp_path / name, [{"vec": token.tobytes()} for token in tokens])

    shards = ShardSet([written("long.tar", 5, 6), written("short.tar", 2, 3)], ("vec",))
    left_out: list[Bad] = []
    rows = encoder_rows(Encoder(1.0), shards, Picky(), 2, whole=True, skip=left_out.append)
    assert gather(rows).numbers.tolist() == [2, 3]
    assert left_out == [(key, "longer than the model takes", "") for key in ("s0000", "s0001")]


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_shares_are_the_batches_of_one_process(shards: ShardSet, processes: int) -> None:
    """Each once, with the same samples in it; the last processes may have none."""
    alone = list(encoder_rows(Encoder(1.0), shards, Picky(), 2))
    found = [
        row.numbers
        for process in range(processes)
        for row in encoder_rows(Encoder(1.0), shards, Picky(), 2, share=Share(process, processes))
    ]
    assert sorted(found) == [row.numbers for row in alone]
    raw = [baseline_features(shards, Picky(), Share(process, 2)).numbers for process in (0, 1)]
    assert [numbers.tolist() for numbers in raw] == [[1, 2, 3, 4, 6], []]


def test_a_share_without_good_samples_is_told(shards: ShardSet) -> None:
    with pytest.raises(DataBudgetError, match="1 x too short"):
        baseline_features(Part(shards, np.array([0])), Picky())


def test_tokens_come_without_padding(shards: ShardSet) -> None:
    found = gather(encoder_rows(Encoder(2.0), shards, VectorPipeline(), 3, tokens=True))
    assert found.lengths is not None
    assert found.lengths.tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert [layer.shape for layer in found.layers] == [(18, WIDTH)] * 3
    assert found.layers[1].dtype == np.float16
    raw = [VectorPipeline().decode(shards.read(i)[1]) for i in range(len(shards))]
    np.testing.assert_allclose(found.layers[1], 2 * np.concatenate(raw), atol=0.06)
