"""transformers loads what is exported, completely and from the folder alone; and back again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from agreement import relative_difference, shipped
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
)

from selfdistill.pretrained import Pretrained, load_pretrained
from selfdistill.renaming import to_ours

pytestmark = pytest.mark.usefixtures("no_network")

Exported = Callable[[str], Path]
Ours = Callable[[str], Pretrained]
PROCESSORS = {"audio": AutoFeatureExtractor, "image": AutoImageProcessor, "text": AutoTokenizer}
NOT_OURS = {
    "audio": set(),
    "image": set(),
    "text": {
        "embeddings.token_type_embeddings.weight",
        "pooler.dense.weight",
        "pooler.dense.bias",
    },
}
NOT_THEIRS = {"audio": set(), "image": {"trunk.norm.weight", "trunk.norm.bias"}, "text": set()}


def parameters(found: Pretrained) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in found.backbone.named_parameters()}


def test_auto_classes(modality: str, exported: Exported) -> None:
    folder = exported(modality)
    config = AutoConfig.from_pretrained(folder)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if len(value)} == {}
    name = {"audio": "Data2VecAudio", "image": "Data2VecVision", "text": "Data2VecText"}[modality]
    assert (type(config).__name__, type(model).__name__) == (f"{name}Config", f"{name}Model")
    assert config.architectures == [f"{name}Model"]
    assert model.dtype == torch.float32
    processor = type(PROCESSORS[modality].from_pretrained(folder)).__name__
    assert (
        processor
        in {
            "audio": {"Wav2Vec2FeatureExtractor"},
            "image": {"BeitImageProcessor", "BeitImageProcessorFast"},
            "text": {"PreTrainedTokenizerFast", "TokenizersBackend"},
        }[modality]
    )


def test_every_parameter_has_its_place(modality: str, exported: Exported, ours: Ours) -> None:
    folder, found = exported(modality), ours(modality)
    file = load_file(folder / "model.safetensors")
    built = AutoModel.from_config(AutoConfig.from_pretrained(folder)).state_dict()
    assert {n: t.shape for n, t in file.items()} == {n: t.shape for n, t in built.items()}
    loaded = AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], file[name]) for name in file)
    assert found.modality.hub is not None
    carried = {name: tensor for name, tensor in file.items() if name not in NOT_OURS[modality]}
    back, unknown = to_ours(carried, found.modality.hub.names)
    mine = parameters(found)
    assert unknown == []
    assert mine.keys() - back.keys() == NOT_THEIRS[modality]
    assert back.keys() <= mine.keys()
    assert all(torch.equal(back[name], mine[name]) for name in back)
    assert all(file[name].count_nonzero() == 0 for name in NOT_OURS[modality])


def test_what_transformers_saves_is_read(
    modality: str, exported: Exported, ours: Ours, tmp_path: Path
) -> None:
    folder, saved = exported(modality), tmp_path / "saved"
    AutoModel.from_pretrained(folder).save_pretrained(saved)
    if modality == "text":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folder / name, saved)
    found, again = parameters(ours(modality)), parameters(load_pretrained(str(saved)))
    assert found.keys() == again.keys()
    differing = {name for name in found if not torch.equal(found[name], again[name])}
    assert differing <= NOT_THEIRS[modality]


ORIENTATION = 0x0112
SENTENCE = "In the beginning was the word."
OFFLINE = """
import os, socket, sys, torch

def refuse(*place):
    raise SystemExit(f"asked for {place}")

socket.socket.connect = socket.getaddrinfo = refuse
for folder in sys.argv[1:]:
    os.chdir(folder)
    card = open("README.md", encoding="utf-8").read()
    lines = card.split("## Use\\n")[1].split("##")[0].splitlines()
    found = {}
    exec("\\n".join(line[4:] for line in lines), found)
    torch.save([state.detach() for state in found["features"]], "features.pt")
"""


def sample_of(modality: str, found: Pretrained, folder: Path) -> dict[str, bytes]:
    """A sample, which lies in ``folder`` under the name that the card has for it."""
    pipeline = found.modality.build_pipeline(found.config)
    if modality == "text":
        return {"txt": SENTENCE.encode()}
    raw = pipeline.decode(shipped(f"{modality}/train").read(0)[1])
    path = folder / {"audio": "clip.wav", "image": "picture.jpg"}[modality]
    if modality == "audio":
        soundfile.write(path, raw, found.config.input.sampling_rate, subtype="FLOAT")
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = 6  # as a phone that was held upright writes it
        picture = raw.resize(found.config.input.size, Image.Resampling.BICUBIC)
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(path, "PNG", exif=exif)
    return {path.suffix[1:]: path.read_bytes()}


def test_the_lines_on_the_cards_run_offline(exported: Exported, ours: Ours, tmp_path: Path) -> None:
    samples: dict[str, dict[str, bytes]] = {}
    for modality in PROCESSORS:
        folder = shutil.copytree(exported(modality), tmp_path / modality)
        samples[modality] = sample_of(modality, ours(modality), folder)
    assert SENTENCE in (tmp_path / "text" / "README.md").read_text(encoding="utf-8")
    subprocess.run(
        [sys.executable, "-c", OFFLINE, *(str(tmp_path / modality) for modality in samples)],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
    )
    for modality, sample in samples.items():
        found = ours(modality)
        pipeline = found.modality.build_pipeline(found.config)
        batch = pipeline.collate([pipeline.plain(pipeline.decode(sample))], None)
        mine, _ = found.backbone.hidden_states(batch.inputs)
        theirs = torch.load(tmp_path / modality / "features.pt")
        prefix = found.backbone.encoder.num_prefix_tokens
        assert relative_difference(mine, [state[:, prefix:] for state in theirs]) < 1e-5
