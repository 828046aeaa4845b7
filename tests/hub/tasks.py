"""A small real task for each class of transformers, made of the shipped samples."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from agreement import shipped
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

COUNT = 8
IGNORED = -100
RATE = 16_000
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS += ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]
LETTERS = 26
KINDS = 6


@dataclass(frozen=True)
class Task:
    """What a class is to learn.

    Attributes:
        batch: arguments of the class, labels included.
        head: config of its head.
        decoder: whether tokens see only those before them.
    """

    batch: dict[str, Tensor]
    head: dict[str, Any] = field(default_factory=dict)
    decoder: bool = False


class WithProbe(nn.Module):
    """A class without a head, its features averaged over the sequence, and a linear probe."""

    def __init__(self, base: nn.Module, classes: int) -> None:
        super().__init__()
        self.base = base
        self.probe = nn.Linear(base.config.hidden_size, classes)

    def forward(self, labels: Tensor, **inputs: Tensor) -> Any:
        features = self.base(**inputs).last_hidden_state.mean(dim=1)
        return Loss(F.cross_entropy(self.probe(features), labels))


@dataclass(frozen=True)
class Loss:
    loss: Tensor


def start_head(model: nn.Module) -> None:
    """Give first values to parts of new heads that some versions leave as the memory was: 5.0 to
    5.24 the bias of a language model's head, those before 5.22 what XVector's loss compares with,
    those before 5.0 batch norms."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif name == "objective":
            nn.init.normal_(module.weight)
        elif name == "lm_head" and hasattr(module, "decoder"):
            nn.init.zeros_(module.bias)


def labels_of(shard: str) -> Tensor:
    return torch.tensor([int(shipped(shard).read(index)[1]["cls"]) for index in range(COUNT)])


def sounds(folder: Path) -> dict[str, Tensor]:
    members = [shipped("audio/train").read(index)[1]["opus"] for index in range(COUNT)]
    clips = [soundfile.read(io.BytesIO(member))[0] for member in members]
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    return dict(extractor(clips, sampling_rate=RATE, padding=True, return_tensors="pt"))


def spoken_words(folder: Path) -> Task:
    return Task({**sounds(folder), "labels": labels_of("audio/train")}, {"num_labels": len(WORDS)})


def spelling(folder: Path) -> Task:
    """Letters from 1 on; 0 is the blank."""
    words = [WORDS[label] for label in labels_of("audio/train")]
    rows = [torch.tensor([ord(letter) - ord("a") + 1 for letter in word]) for word in words]
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    return Task({**sounds(folder), "labels": labels}, {"ctc_loss_reduction": "mean"})


def speech_or_silence(folder: Path) -> Task:
    """Of each frame of 25 ms every 20 ms, one-hot."""
    given = sounds(folder)
    energy = given["input_values"].square().unfold(1, 400, 320).mean(dim=2)  # [B, T]
    return Task({**given, "labels": F.one_hot((energy > 0.1).long(), 2)}, {"num_labels": 2})


def word_vectors(folder: Path) -> Task:
    head = {"tdnn_dim": [32] * 3, "tdnn_kernel": [5, 3, 1], "tdnn_dilation": [1, 2, 1]}
    task = spoken_words(folder)
    return Task(task.batch, {**task.head, **head, "xvector_output_dim": 32})


def pictures(folder: Path, maps: list[np.ndarray] | None = None) -> dict[str, Tensor]:
    processor = AutoImageProcessor.from_pretrained(folder)
    return dict(processor([p.convert("RGB") for p in grey()], maps, return_tensors="pt"))


def grey() -> list[Image.Image]:
    members = [shipped("image/train").read(index)[1]["png"] for index in range(COUNT)]
    return [Image.open(io.BytesIO(member)) for member in members]


def letters(folder: Path) -> Task:
    return Task({**pictures(folder), "labels": labels_of("image/train")}, {"num_labels": LETTERS})


def ink(folder: Path) -> Task:
    """Ink is what is far from the grey that most of a picture has."""
    values = [np.asarray(picture, dtype=np.float32) for picture in grey()]
    distances = [np.abs(value - np.median(value)) for value in values]
    maps = [(d > d.max() / 2).astype(np.uint8) for d in distances]
    given = pictures(folder, maps)
    given["labels"] = torch.stack(list(given["labels"]))
    return Task(given, {"num_labels": 2, "auxiliary_channels": 16})


def text(shard: str, index: int) -> str:
    return str(shipped(shard).read(index)[1]["txt"].decode())


def passages(folder: Path) -> Any:
    texts = [text("text/train", index) for index in range(COUNT)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(texts, truncation=True, padding=True, return_tensors="pt")


def kinds(folder: Path) -> Task:
    return Task({**passages(folder), "labels": labels_of("text/train")}, {"num_labels": KINDS})


def next_tokens(folder: Path) -> Task:
    given = passages(folder)
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, IGNORED)
    return Task({**given, "labels": labels}, decoder=True)


def hidden_tokens(folder: Path) -> Task:
    given = dict(passages(folder))
    ids, mask_id = given["input_ids"], AutoTokenizer.from_pretrained(folder).mask_token_id
    hidden = (torch.arange(ids.shape[1]) % 5 == 2) & (given["attention_mask"] == 1)
    given["input_ids"] = ids.masked_fill(hidden, mask_id)
    return Task({**given, "labels": ids.masked_fill(~hidden, IGNORED)})


def the_swapped_one(folder: Path) -> Task:
    """Which of two sentences has two neighbouring words swapped?"""
    by_label: list[list[str]] = [[], []]
    for index in range(6 * COUNT):
        label = int(shipped("text/order-train").read(index)[1]["cls"])
        by_label[label].append(text("text/order-train", index))
    right = torch.arange(COUNT) % 2
    pairs = [(by_label[1 - r][i], by_label[r][i]) for i, r in enumerate(right.tolist())]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer([s for pair in pairs for s in pair], padding=True, return_tensors="pt")
    return Task({n: t.view(COUNT, 2, -1) for n, t in given.items()} | {"labels": right})


def beginnings(folder: Path) -> Task:
    """Does a word begin with this piece?"""
    given, tokenizer = passages(folder), AutoTokenizer.from_pretrained(folder)
    pieces = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in given["input_ids"]]
    first = torch.tensor([[piece.startswith("\u2581") for piece in row] for row in pieces])
    special = given["input_ids"] < 5
    return Task({**given, "labels": first.long().masked_fill(special, IGNORED)}, {"num_labels": 2})


def spans(folder: Path) -> Task:
    """Where in the passage is the word that is asked for?"""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [text("text/train", index) for index in range(COUNT)]
    words = [passage.split()[index] for index, passage in enumerate(texts)]
    given = tokenizer(words, texts, truncation="only_second", padding=True, return_tensors="pt")
    starts, ends = [], []
    for row, (word, passage) in enumerate(zip(words, texts, strict=True)):
        begin = passage.index(word)
        starts.append(given.char_to_token(row, begin, sequence_index=1))
        ends.append(given.char_to_token(row, begin + len(word) - 1, sequence_index=1))
    positions = {"start_positions": torch.tensor(starts), "end_positions": torch.tensor(ends)}
    return Task({**given, **positions})


TASKS: dict[str, Callable[[Path], Task]] = {
    "Data2VecAudioModel": spoken_words,
    "Data2VecAudioForCTC": spelling,
    "Data2VecAudioForAudioFrameClassification": speech_or_silence,
    "Data2VecAudioForSequenceClassification": spoken_words,
    "Data2VecAudioForXVector": word_vectors,
    "Data2VecTextModel": kinds,
    "Data2VecTextForCausalLM": next_tokens,
    "Data2VecTextForMaskedLM": hidden_tokens,
    "Data2VecTextForSequenceClassification": kinds,
    "Data2VecTextForMultipleChoice": the_swapped_one,
    "Data2VecTextForTokenClassification": beginnings,
    "Data2VecTextForQuestionAnswering": spans,
    "Data2VecVisionModel": letters,
    "Data2VecVisionForImageClassification": letters,
    "Data2VecVisionForSemanticSegmentation": ink,
}
