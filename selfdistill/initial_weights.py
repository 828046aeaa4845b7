"""Start a run from weights that exist: a run, a folder of transformers, an original's file."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.durable import write_atomically
from selfdistill.engine.checkpoint import Checkpointer, find_checkpoint
from selfdistill.engine.checkpoint_files import Checkpoint
from selfdistill.errors import UserError
from selfdistill.hub.reader import HubFolder, is_hub_folder
from selfdistill.modalities.base import Modality
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.originals import load_original, recognise
from selfdistill.pretrained import checkpoint_config, locate, run_folder
from selfdistill.tensor_files import read_weights

logger = logging.getLogger(__name__)

KEY = "init_from"
SHAPE = (
    "model.width",
    "model.depth",
    "model.heads",
    "model.mlp_ratio",
    "model.norm_order",
    "model.norm_eps",
    "model.key_bias",
)
OF_A_RUN = ("objective.head_layers", "teacher.own_local_encoder")
# only the kernels' width follows from position_width, rounded; the weights' shapes tell it
NOT_SHAPE = ("input_dropout", "position_width")


class InitialWeights:
    """What ``init_from`` names.

    That is a run's folder or one of its checkpoints, a folder of transformers, USER/NAME on the
    Hub, or a file of the original authors (.safetensors, or .pt and .pth as fairseq and BEiT save
    them; nothing that is pickled in it is run).

    Args:
        config: of the run to start.
        modality: of that run.

    Raises:
        UserError: there is no such thing.
    """

    def __init__(self, config: RunConfig, modality: Modality) -> None:
        self.config = config
        self.modality = modality
        self.path = locate(config.init_from, KEY)
        self.is_file = self.path.is_file()
        self.is_hub = not self.is_file and is_hub_folder(self.path)
        if not self.is_file and not self.is_hub:
            self.path = find_checkpoint(self.path, KEY)

    def check(self) -> None:
        """Refuse weights of another encoder; those of a file are looked at when they are loaded.

        Raises:
            UserError: it is another one; each key that differs is named with both values.
        """
        if self.is_file:
            return
        more = () if self.is_hub else OF_A_RUN
        modality, theirs = self.modality, self._config()
        self._refuse_other({"modality": modality.name}, {"modality": theirs.modality})
        self._refuse_other(_shape(modality, self.config, more), _shape(modality, theirs, more))

    def bring_companions(self) -> None:
        """Copy what belongs to the weights into the run's folder.

        Raises:
            UserError: it is missing, or the run's folder holds another.
        """
        if self.is_file:
            return
        home = self.path if self.is_hub else run_folder(self.path)
        for name, content in self.modality.companions(home).items():
            ours = Path(self.config.run_dir) / name
            if not ours.exists():
                ours.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(ours, content)
            elif ours.read_bytes() != content.encode():
                raise UserError(
                    f"{KEY}: {ours} differs from that of {home}, which the weights were trained "
                    "with; remove it, or choose another run_dir"
                )

    def load_into(self, model: Data2Vec) -> None:
        """Load student and teacher, and from a run or an original the head too.

        Args:
            model: of the run's config.

        Raises:
            UserError: nothing that can be read, or it does not fit the model; each parameter in
                the way is named.
        """
        if self.is_file:
            self._load_original(model)
        elif self.is_hub:
            self._load_hub_folder(model)
        else:
            self._load_checkpoint(model)

    def _config(self) -> RunConfig:
        if self.is_hub:
            return HubFolder(self.path, KEY).config()
        return checkpoint_config(self._checkpoint())

    def _checkpoint(self) -> Checkpoint:
        return Checkpointer(self.path.parent, keep=1).load(self.path)

    def _load_original(self, model: Data2Vec) -> None:
        student, teacher = _read_original(self.path)
        try:
            theirs = recognise(student)[0].name
            if theirs == self.modality.name:
                load_original(model, student, teacher)
        except UserError as error:
            raise UserError(f"{KEY}: {self.path}: {error}") from error
        self._refuse_other({"modality": self.modality.name}, {"modality": theirs})

    def _load_checkpoint(self, model: Data2Vec) -> None:
        try:
            model.load_state_dict(self._checkpoint().model)
        except RuntimeError as error:
            reasons = " ".join(str(error).split())
            raise UserError(f"{KEY}: {self.path} does not fit the model: {reasons}") from error

    def _load_hub_folder(self, model: Data2Vec) -> None:
        folder = HubFolder(self.path, KEY)
        for name, value in folder.sections["input"].items():
            mine = getattr(self.config.input, name)
            if name not in self.modality.architecture and _plain(mine) != _plain(value):
                logger.warning(
                    "%s: input.%s is %s, the weights were made for %s", KEY, name, mine, value
                )
        for note in folder.load_into(model.student):
            logger.warning("%s: %s", KEY, note)
        model.update_teacher(decay=0.0)

    def _refuse_other(self, mine: Mapping[str, Any], yours: Mapping[str, Any]) -> None:
        wrong = [
            f"{key} is {mine[key]} here and {yours[key]} there"
            for key in mine
            if mine[key] != yours[key]
        ]
        if wrong:
            raise UserError(
                f"{KEY}: {self.path} holds another encoder: {'; '.join(wrong)}. Set the keys to "
                "the values there, or start from other weights"
            )


def _shape(modality: Modality, config: RunConfig, more: Sequence[str]) -> dict[str, Any]:
    """The keys that decide which parameters there are and what they compute."""
    keys = [*SHAPE, *more, *(f"input.{key}" for key in modality.architecture)]
    keys += [f"encoder.{key}" for key in asdict(config.encoder) if key not in NOT_SHAPE]
    shape = {key: _plain(reduce(getattr, key.split("."), config)) for key in keys}
    return {**shape, "model.layer_scale": "more than 0" if config.model.layer_scale else 0}


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _read_original(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    content = read_weights(path, KEY)
    model = content.get("model", content)
    student = _parameters(model, path)
    # BEiT keeps the teacher beside the student, fairseq among its parameters
    teacher = content.get("model_ema", model.get("_ema"))
    return student, None if teacher is None else _parameters(teacher, path)


def _parameters(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise UserError(f"{KEY}: {path} holds no parameters")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
