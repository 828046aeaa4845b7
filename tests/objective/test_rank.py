import math

import pytest
import torch

from selfdistill.objective.rank import effective_rank


def orthogonal_rows(strengths: list[float], rows: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(rows, len(strengths), generator=generator))
    return basis * torch.tensor(strengths)


def test_equal_directions_are_counted() -> None:
    assert effective_rank(orthogonal_rows([1.0] * 8), centre=False) == pytest.approx(8, abs=1e-2)


def test_it_is_the_exponential_of_the_entropy() -> None:
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    found = effective_rank(orthogonal_rows([3.0, 1.0]), centre=False)
    assert found == pytest.approx(math.exp(entropy), abs=1e-3)


def test_a_common_mean_hides_the_rank_unless_centred() -> None:
    x = torch.randn(512, 16, generator=torch.Generator().manual_seed(1)) + 100
    assert effective_rank(x) > 15
    assert effective_rank(x, centre=False) < 4


def test_equal_rows_have_rank_one() -> None:
    assert effective_rank(torch.full((10, 4), 0.5)) == pytest.approx(1, abs=1e-3)


def test_nan_is_told() -> None:
    assert math.isnan(effective_rank(torch.tensor([[1.0, float("nan")], [0.0, 1.0]])))
