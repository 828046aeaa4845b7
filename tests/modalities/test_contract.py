"""What every modality keeps to, the package's and whoever's folder is put beside them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from encoder_cases import CASES, config_of, modality_of
from matplotlib.figure import Figure
from modality_cases import MODALITIES, MODALITY_CASES, Sample
from small_runs import SmallRuns

from selfdistill.config import RunConfig
from selfdistill.config_files.load import build_config
from selfdistill.data.pipeline import InputPipeline
from selfdistill.errors import BadSample
from selfdistill.masking import row_keys
from selfdistill.modalities.base import FeatureEncoder, load_modality
from selfdistill.modalities.picture import Area, Shown

Make = Callable[..., RunConfig]
every_modality = pytest.mark.parametrize("modality", MODALITIES)
KEYS = ["a", "b", "c", "d", "e", "f"]


@pytest.fixture
def config(modality: str, runs: SmallRuns) -> RunConfig:
    """Of a run, prepared."""
    return load_modality(modality).attach(runs.config(modality), runs.run(modality))


@pytest.fixture
def pipeline(modality: str, config: RunConfig) -> InputPipeline:
    return load_modality(modality).build_pipeline(config)


@pytest.fixture
def samples(modality: str) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [MODALITY_CASES[modality].sample(rng, row % 2) for row in range(len(KEYS))]


def defaults(modality: str) -> RunConfig:
    return build_config({"modality": modality, "run_dir": "unused"}, load_modality)


def encoder_of(config: RunConfig) -> FeatureEncoder:
    with torch.device("meta"):
        return load_modality(config.modality).build_encoder(config)


@every_modality
def test_defaults_are_a_config(modality: str) -> None:
    load_modality(modality).check(defaults(modality))


@every_modality
def test_it_has_the_name_of_its_folder(modality: str) -> None:
    assert load_modality(modality).name == modality


@pytest.mark.parametrize("strategy", ["dense", "visible"])
@pytest.mark.parametrize("case", CASES)
def test_what_no_strategy_uses_is_not_there(case: str, strategy: str, tiny_config: Make) -> None:
    """A parameter without a gradient keeps processes waiting for it."""
    encoder = encoder_of(config_of(case, tiny_config, strategy=strategy))
    has_token = "mask_token" in dict(encoder.named_parameters())
    assert has_token == (strategy == "dense" and MODALITY_CASES[modality_of(case)].has_mask_token)


@every_modality
def test_masks_are_of_the_encoder_s_tokens(
    modality: str, config: RunConfig, pipeline: InputPipeline, samples: list[Sample]
) -> None:
    rng = np.random.default_rng(0)
    examples = [pipeline.augment(pipeline.decode(sample), rng) for sample in samples]
    batch = pipeline.collate(examples, row_keys(0, np.arange(len(examples))), KEYS)
    masks, encoder = batch.masks, load_modality(modality).build_encoder(config)
    assert masks is not None
    tokens = encoder.embed(batch.inputs, batch.lengths)
    clones = config.mask.num_masks
    assert masks.masked.shape == (clones * len(KEYS), tokens.x.shape[1])
    assert list(batch.keys) == KEYS
    assert len(batch.inputs) == len(KEYS)
    if tokens.padding is not None:
        assert not (masks.masked & tokens.padding.repeat_interleave(clones, dim=0)).any()
    if batch.lengths is not None:
        assert int(batch.lengths.max()) == batch.inputs.shape[1]
    assert masks.masked.any(dim=1).all()
    assert masks.visible.shape[1] > 0


@every_modality
def test_masks_come_from_their_keys(
    modality: str, pipeline: InputPipeline, samples: list[Sample]
) -> None:
    """So that a resumed run draws the same."""
    examples = [pipeline.plain(pipeline.decode(sample)) for sample in samples]
    found = [
        pipeline.collate(examples, row_keys(seed, np.arange(len(examples)))).masks
        for seed in (0, 0, 1)
    ]
    same, again, other = (masks.masked for masks in found if masks is not None)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert pipeline.collate(examples, None).masks is None


@every_modality
def test_a_plain_example_has_no_chance(
    modality: str, pipeline: InputPipeline, samples: list[Sample]
) -> None:
    first, again = (pipeline.plain(pipeline.decode(samples[0])) for _ in range(2))
    assert np.array_equal(first, again)


@every_modality
def test_the_raw_input_has_as_many_features_whatever_its_length(
    modality: str, pipeline: InputPipeline, samples: list[Sample]
) -> None:
    found = [pipeline.baseline(pipeline.plain(pipeline.decode(sample))) for sample in samples]
    assert len({features.shape for features in found}) == 1
    assert {features.dtype for features in found} == {np.dtype(np.float32)}
    assert found[0].ndim == 1
    assert pipeline.baseline_name


@every_modality
def test_bytes_that_mean_nothing_are_a_bad_sample(
    modality: str, pipeline: InputPipeline, samples: list[Sample]
) -> None:
    (name,) = samples[0].keys() & set(pipeline.extensions)
    for content in (b"", b"\xff\x00\xfe" * 7):
        with pytest.raises(BadSample):
            pipeline.augment(pipeline.decode({name: content}), np.random.default_rng(0))


@every_modality
def test_lengths_are_told_without_decoding(modality: str, samples: list[Sample]) -> None:
    """And what shows samples tells the same, by the name of the unit."""
    found = load_modality(modality)
    assert bool(found.length) == bool(found.length_unit)
    if found.length is None or found.picture is None:
        return
    picture = found.picture(defaults(modality))
    for sample in samples:
        told = picture.measures(picture.decode(sample))[found.length_unit]
        assert told == pytest.approx(found.length(sample), rel=1e-3)


@every_modality
@pytest.mark.parametrize("prepared", [True, False])
def test_samples_can_be_looked_at(
    modality: str, prepared: bool, config: RunConfig, samples: list[Sample]
) -> None:
    """By the config of a run, and by one of defaults."""
    found = load_modality(modality)
    if found.picture is None:
        pytest.skip("nothing draws them")
    picture = found.picture(config if prepared else defaults(modality))
    assert bool(picture.pipeline) or picture.note
    for sample in samples:
        value: Any = picture.decode(sample)
        assert all(np.isfinite(list(picture.measures(value).values())))
        shown = Shown("key", 1, value, None)
        height = picture.height(shown, 3.0)
        assert 0 < height < 100
        picture.draw(Area(Figure(figsize=(3, height)), 0, 0, 3, height), shown)
