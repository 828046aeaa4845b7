"""Finding modalities, and a fourth one that the package has never heard of."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfdistill.config import EncoderConfig, MaskConfig, RunConfig
from selfdistill.config_files.load import build_config
from selfdistill.engine.optim import build_optimizer
from selfdistill.errors import UserError
from selfdistill.masking import clone_keys, row_keys, span_masks
from selfdistill.modalities.base import (
    FeatureEncoder,
    InputPipeline,
    Modality,
    load_modality,
    modality_names,
)
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Batch, Masks, Tokens


@dataclass(frozen=True)
class SeriesEncoderConfig(EncoderConfig):
    channels: int = 3


@dataclass(frozen=True)
class SeriesMaskConfig(MaskConfig):
    prob: float = 0.5


@dataclass(frozen=True)
class SeriesInputConfig:
    steps: int = 12


class SeriesEncoder(FeatureEncoder):
    """Measurements [B, T, channels], one token per time."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.local = nn.Linear(config.encoder.channels, config.model.width)
        self.positions = nn.Parameter(torch.randn(config.input.steps, config.model.width))
        if config.strategy == "dense":
            self.mask_token = nn.Parameter(torch.randn(config.model.width))

    @property
    def mask_vector(self) -> Tensor:
        return self.mask_token

    def embed(self, inputs: Tensor, lengths: Tensor | None) -> Tokens:
        return Tokens(self.local(inputs))

    def locate(self, tokens: Tokens) -> Tokens:
        return replace(tokens, x=tokens.x + self.positions)

    def enter(self, tokens: Tokens) -> Tokens:
        return tokens


class SeriesPipeline(InputPipeline):
    extensions = ("f32",)

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def decode(self, sample: Mapping[str, bytes]) -> np.ndarray:
        values = np.frombuffer(sample["f32"], dtype=np.float32)
        return values.reshape(-1, self.config.encoder.channels)

    def augment(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        steps = self.config.input.steps
        start = int(rng.integers(len(raw) - steps + 1))
        return raw[start : start + steps]

    def plain(self, raw: np.ndarray) -> np.ndarray:
        return raw[: self.config.input.steps]

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: np.ndarray | None, keys: Sequence[str] = ()
    ) -> Batch:
        masks = None
        if mask_keys is not None:
            steps, mask = self.config.input.steps, self.config.mask
            mask_keys = clone_keys(mask_keys, mask.num_masks)
            lengths = np.full(len(mask_keys), steps)
            masked = span_masks(mask_keys, lengths, steps, prob=mask.prob, length=2)
            masks = Masks.from_bool(masked)
        return Batch(torch.from_numpy(np.stack(examples)), masks=masks, keys=keys)

    def baseline(self, example: np.ndarray) -> np.ndarray:
        return example.ravel()


def series_check(config: RunConfig) -> None:
    if config.encoder.channels < 1:
        raise UserError(f"encoder.channels: {config.encoder.channels} must be 1 or more")


MODALITY = Modality(
    name="series",
    encoder_config=SeriesEncoderConfig,
    mask_config=SeriesMaskConfig,
    input_config=SeriesInputConfig,
    build_encoder=SeriesEncoder,
    build_pipeline=SeriesPipeline,
    check=series_check,
)


@pytest.fixture
def dotted_name(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "outside.series", sys.modules[__name__])
    return "outside.series"


def series_config(name: str, **changes: Any) -> RunConfig:
    given = {
        "modality": name,
        "run_dir": "unused",
        "model": {"width": 16, "depth": 2, "heads": 2},
        "objective": {"average_top_k_layers": 2, "layer_norms": ["layer"]},
        "teacher": {"ema_decay": 0.5, "scope": "all"},
    }
    return build_config(given | changes, load_modality)


@pytest.mark.parametrize("strategy", ["dense", "visible"])
def test_a_fourth_modality_trains_without_touching_the_engine(
    strategy: str, dotted_name: str
) -> None:
    config = series_config(
        dotted_name,
        strategy=strategy,
        encoder={"channels": 2, "prenet_depth": 1},
        mask={"num_masks": 3},
        decoder={"width": 8, "layers": 2, "groups": 4, "mask_noise_std": 0.0},
        optim={"lr": 1e-3},
    )
    assert config.encoder == SeriesEncoderConfig(channels=2, prenet_depth=1)
    modality = load_modality(config.modality)
    pipeline = modality.build_pipeline(config)
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(20, 2)).astype(np.float32).tobytes() for _ in range(4)]
    examples = [pipeline.augment(pipeline.decode({"f32": sample}), rng) for sample in samples]
    batch = pipeline.collate(examples, row_keys(0, np.arange(4)))

    torch.manual_seed(0)
    model = Data2Vec(config)
    optimizer = build_optimizer(model, config.optim)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = model({"series": batch})["series"]
    (step.loss / step.tokens).backward()
    optimizer.step()
    after = model({"series": batch})["series"].loss
    model.update_teacher(0.5)
    # keys' bias has no gradient, but decay
    still = [n for n, v in model.state_dict().items() if torch.equal(v, before[n])]
    assert all(name.endswith("k_bias") for name in still)
    assert after.item() < step.loss.item()


def test_its_sections_are_checked(dotted_name: str) -> None:
    with pytest.raises(UserError, match=r"encoder\.chanels.*encoder\.channels"):
        series_config(dotted_name, encoder={"chanels": 2})
    with pytest.raises(UserError, match=r"encoder\.channels: 0"):
        series_config(dotted_name, encoder={"channels": 0})


def test_what_comes_with_the_package() -> None:
    assert {*modality_names()} >= {"audio", "image", "text"}
    for name in modality_names():
        assert load_modality(name).name == name


@pytest.mark.parametrize("name", ["vide0", "video.mine", "", "../audio", ".audio", "audio/x"])
def test_an_unknown_modality_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"modality: there is no '.*{', '.join(modality_names())}"):
        load_modality(name)


@pytest.mark.parametrize("name", ["base", "os.path"])
def test_a_module_without_a_declaration_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="declares no MODALITY"):
        load_modality(name)


def test_an_error_inside_a_modality_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_modality").mkdir()
    (tmp_path / "broken_modality" / "__init__.py").write_text("")
    (tmp_path / "broken_modality" / "mine.py").write_text("import broken_mod")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="broken_mod"):
        load_modality("broken_modality.mine")
