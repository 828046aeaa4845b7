"""A toy modality: a sample is a few vectors of width 4, its label is in their mean."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.data.pipeline import InputPipeline
from selfdistill.types import Batch

WIDTH = 4
CENTRES = 3 * np.eye(WIDTH, dtype=np.float32)


class VectorPipeline(InputPipeline):
    extensions = ("vec",)
    baseline_name = "vectors"

    def decode(self, sample: Mapping[str, bytes]) -> np.ndarray:
        return np.frombuffer(sample["vec"], dtype=np.float32).reshape(-1, WIDTH)

    def augment(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise AssertionError("an evaluation has no chance in it")

    def plain(self, raw: np.ndarray) -> np.ndarray:
        return raw

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: np.ndarray | None, keys: Sequence[str] = ()
    ) -> Batch:
        assert mask_keys is None
        lengths = torch.tensor([len(example) for example in examples])
        inputs = torch.full((len(examples), int(lengths.max()), WIDTH), float("nan"))
        for row, example in zip(inputs, examples, strict=True):
            row[: len(example)] = torch.from_numpy(example.copy())
        return Batch(inputs, lengths, keys=keys)

    def baseline(self, example: np.ndarray) -> np.ndarray:
        return np.abs(example).mean(axis=0)  # knows the classes


class Encoder(nn.Module):
    """Layer 0 is noise, layer 1 the input times ``gain``, layer 2 noise again."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.dropout = nn.Dropout(0.9)
        self.calls = 0

    def hidden_states(
        self, inputs: Tensor, lengths: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        assert lengths is not None
        assert not torch.is_grad_enabled()
        self.calls += 1
        padding = torch.arange(inputs.shape[1])[None] >= lengths[:, None]
        generator = torch.Generator().manual_seed(self.calls)
        noise = torch.randn(inputs.shape, generator=generator)
        told = self.dropout(inputs * self.gain) + 0.01 * noise
        return [noise, told, noise], padding
