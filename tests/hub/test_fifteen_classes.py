"""Each class of transformers takes the export as its encoder and learns with it."""

import fnmatch
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from agreement import arguments, collate, difference, examples, hidden_states, relative_difference
from safetensors.torch import load_file
from tasks import TASKS, WithProbe, start_head
from transformers import AutoModel

from selfdistill.pretrained import Pretrained, load_pretrained
from selfdistill.types import Batch

pytestmark = pytest.mark.usefixtures("no_network")

Exported = Callable[[str], Path]
Ours = Callable[[str], Pretrained]
STEPS = 20
LR = 3e-3
MODALITIES = {"Audio": "audio", "Text": "text", "Vision": "image"}
with torch.device("meta"):
    HEAD = transformers.Data2VecVisionForSemanticSegmentation(transformers.Data2VecVisionConfig())
OLD = any(".bn." in name for name, _ in HEAD.named_parameters())
"""Whether the parts of a segmentation head have their old names."""


def linear(*names: str) -> set[str]:
    return {f"{name}.{part}" for name in names for part in ("weight", "bias")}


def conv_blocks(*names: str) -> set[str]:
    conv, norm = ("conv", "bn") if OLD else ("convolution", "normalization")
    return {f"{name}.{conv}.weight" for name in names} | {
        member for name in names for member in batch_norm(f"{name}.{norm}")
    }


def batch_norm(name: str) -> set[str]:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return linear(name) | {f"{name}.{part}" for part in statistics}


LM_HEAD = linear("lm_head.dense", "lm_head.layer_norm") | {"lm_head.bias", "lm_head.decoder.bias"}
POOLING = ("decode_head.psp_modules.{}.1", "decode_head.psp_modules.blocks.{}.conv")
NEW = {
    "Data2VecAudioModel": set(),
    "Data2VecAudioForCTC": linear("lm_head"),
    "Data2VecAudioForAudioFrameClassification": linear("classifier"),
    "Data2VecAudioForSequenceClassification": linear("projector", "classifier"),
    "Data2VecAudioForXVector": linear(
        "projector",
        "tdnn.0.kernel",
        "tdnn.1.kernel",
        "tdnn.2.kernel",
        "feature_extractor",
        "classifier",
    )
    | {"objective.weight"},
    "Data2VecTextModel": set(),
    "Data2VecTextForCausalLM": LM_HEAD,
    "Data2VecTextForMaskedLM": LM_HEAD,
    "Data2VecTextForSequenceClassification": linear("classifier.dense", "classifier.out_proj"),
    "Data2VecTextForMultipleChoice": linear("classifier"),
    "Data2VecTextForTokenClassification": linear("classifier"),
    "Data2VecTextForQuestionAnswering": linear("qa_outputs"),
    "Data2VecVisionModel": set(),
    "Data2VecVisionForImageClassification": linear(
        "data2vec_vision.pooler.layernorm", "classifier"
    ),
    "Data2VecVisionForSemanticSegmentation": linear(
        "fpn1.0", "fpn1.3", "fpn2.0", "decode_head.classifier", "auxiliary_head.classifier"
    )
    | batch_norm("fpn1.1")
    | conv_blocks(
        "auxiliary_head.convs.0",
        "decode_head.bottleneck" if OLD else "decode_head.psp_bottleneck",
        "decode_head.fpn_bottleneck",
        *(f"decode_head.lateral_convs.{i}" for i in range(3)),
        *(f"decode_head.fpn_convs.{i}" for i in range(3)),
        *(POOLING[0 if OLD else 1].format(i) for i in range(4)),
    ),
}
"""What a class has beside the encoder."""
WITH_POOLER = {"Data2VecTextModel", "Data2VecTextForMultipleChoice"}
POOLER = linear("pooler.dense")
"""In the file, but only for these; the others leave it."""
UNUSED = {
    "Data2VecTextModel": ["pooler.*"],
    "Data2VecVisionModel": ["embeddings.mask_token"],
    "Data2VecVisionForImageClassification": ["embeddings.mask_token"],
    # of six blocks it reads the first four
    "Data2VecVisionForSemanticSegmentation": ["embeddings.mask_token", "encoder.layer.[45].*"],
}
"""What of the encoder a class does not use."""


@dataclass
class FineTuned:
    """A class after its task.

    Attributes:
        model: the class.
        losses: of each step.
        still: the encoder's parameters that are as they were.
    """

    model: Any
    losses: list[float]
    still: set[str]


def modality_of(name: str) -> str:
    return next(m for word, m in MODALITIES.items() if name.startswith(f"Data2Vec{word}"))


def fine_tune(name: str, folder: Path, lr: float = LR) -> FineTuned:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 transformers draws SpecAugment's masks from it
    task = TASKS[name](folder)
    options = {**task.head, "is_decoder": True} if task.decoder else task.head
    model = getattr(transformers, name).from_pretrained(folder, **options)
    start_head(model)
    learner = WithProbe(model, task.head["num_labels"]) if name.endswith("Model") else model
    before = {n: p.detach().clone() for n, p in model.base_model.named_parameters()}
    learner.train()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=lr)
    losses = []
    for _ in range(STEPS):
        loss = learner(**task.batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    still = {n for n, p in model.base_model.named_parameters() if torch.equal(p, before[n])}
    return FineTuned(model.eval(), losses, still)


def learned(losses: list[float]) -> bool:
    return bool(np.mean(losses[-3:]) < 0.9 * losses[0])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More only wait for each other at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fine_tuned(exported: Exported) -> Callable[[str], FineTuned]:
    """A class by its name, after its task."""
    return cache(lambda name: fine_tune(name, exported(modality_of(name))))


@pytest.fixture(scope="module")
def rows(table: list[str]) -> Callable[..., None]:
    """Adds a row to the table at the end of the output."""
    row = "{:42} {:>13} {:>11} {:>11}"
    table.append(f"transformers {transformers.__version__}, torch {torch.__version__}")
    table.append(row.format("class", "largest error", "loss before", "after"))
    return lambda *cells: table.append(row.format(*cells))


def unpadded(found: Pretrained) -> Batch:
    batch = examples(found, 4)
    shortest = min(len(row) for row in batch)
    return collate(found, [row[:shortest] for row in batch])


def test_all_are_here() -> None:
    declared = {name for name in dir(transformers) if name.startswith("Data2Vec")}
    models = {n for n in declared if not n.endswith(("Config", "PreTrainedModel"))}
    assert models == NEW.keys() == TASKS.keys()
    assert len(models) == 15


@pytest.mark.parametrize("name", NEW)
def test_only_the_head_is_new(name: str, exported: Exported) -> None:
    folder = exported(modality_of(name))
    head = TASKS[name](folder).head
    model, info = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, **head
    )
    assert set(info["missing_keys"]) == NEW[name]
    unexpected = {n.removeprefix("data2vec_text.") for n in info["unexpected_keys"]}
    without = modality_of(name) == "text" and name not in WITH_POOLER
    assert unexpected == (POOLER if without else set())
    assert not info["mismatched_keys"]
    file, loaded = load_file(folder / "model.safetensors"), model.base_model.state_dict()
    kept = file.keys() - unexpected
    assert kept == {n for n in loaded if f"data2vec_vision.{n}" not in NEW[name]}
    assert all(torch.equal(file[n], loaded[n]) for n in kept)


@pytest.mark.parametrize("name", NEW)
def test_learns(
    name: str,
    exported: Exported,
    ours: Ours,
    fine_tuned: Callable[[str], FineTuned],
    rows: Callable[..., None],
) -> None:
    modality, folder = modality_of(name), exported(modality_of(name))
    found, task = ours(modality), TASKS[name](folder)
    batch = unpadded(found)
    encoder = getattr(transformers, name).from_pretrained(folder, **task.head).base_model.eval()
    theirs = hidden_states(encoder, modality, **arguments(found.config, batch))
    mine, _ = found.backbone.hidden_states(batch.inputs)
    result = fine_tuned(name)
    before, after = result.losses[0], float(np.mean(result.losses[-3:]))
    rows(name, f"{difference(mine, theirs):.1e}", f"{before:.3f}", f"{after:.3f}")
    assert relative_difference(mine, theirs) < 1e-5
    assert learned(result.losses)
    names, unused = dict(encoder.named_parameters()), UNUSED.get(name, [])
    assert result.still == {n for pattern in unused for n in fnmatch.filter(names, pattern)}


@pytest.mark.parametrize(
    "name",
    [
        "Data2VecAudioForSequenceClassification",
        "Data2VecTextForMaskedLM",
        "Data2VecVisionForSemanticSegmentation",
    ],
)
def test_without_a_rate_nothing_is_learned(name: str, exported: Exported) -> None:
    result = fine_tune(name, exported(modality_of(name)), lr=0.0)
    assert not learned(result.losses)
    assert result.still == dict(result.model.base_model.named_parameters()).keys()


@pytest.mark.parametrize("name", NEW)
def test_what_was_fine_tuned_is_read(
    name: str, exported: Exported, fine_tuned: Callable[[str], FineTuned], tmp_path: Path
) -> None:
    modality, encoder = modality_of(name), {}
    fine_tuned(name).model.save_pretrained(tmp_path)
    if modality == "text":
        shutil.copy(exported(modality) / "tokenizer.json", tmp_path)
        encoder = {"is_decoder": False}  # without the mask that CausalLM was trained under
    found = load_pretrained(str(tmp_path))
    batch = unpadded(found)
    model = AutoModel.from_pretrained(tmp_path, **encoder)
    theirs = hidden_states(model, modality, **arguments(found.config, batch))
    mine, _ = found.backbone.hidden_states(batch.inputs)
    assert relative_difference(mine, theirs) < 1e-5
