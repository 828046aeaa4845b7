"""Start a run from weights that exist: a run, a folder of transformers, an original's file."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.config_files.load import without_tuples
from selfdistill.durable import write_atomically
from selfdistill.engine.checkpoint_files import (
    find_checkpoint,
    is_of_checkpoint,
    read_checkpoint,
)
from selfdistill.errors import UserError, errors_of
from selfdistill.hub.reader import WEIGHTS, HubFolder, is_hub_folder
from selfdistill.modalities.base import load_modality
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
OF_A_PREDICTOR = {
    "dense": ("objective.head_layers",),
    "visible": (
        "decoder.width",
        "decoder.layers",
        "decoder.kernel",
        "decoder.groups",
        "decoder.residual",
        "decoder.projection_layers",
        "decoder.projection_ratio",
    ),
}
OF_A_STRATEGY = ("predictors.*", "*.mask_token")
"""Parameters that a run of another strategy need not have."""
BY_MODALITY = ("student.encoders", "teacher.encoders", "predictors")
# only the kernels' width follows from position_width, rounded; the weights' shapes tell it
NOT_SHAPE = ("input_dropout", "position_width")


def bring_companions(config: RunConfig, home: Path, key: str) -> None:
    """Copy what weights cannot be used without, such as a tokenizer, into the run's folder.

    Args:
        config: of the run.
        home: where the weights come from: a run's folder, or one of transformers.
        key: the config's name of ``home``, for the error message.

    Raises:
        UserError: it is missing, or the run's folder holds another.
    """
    for part in config.parts().values():
        for name, content in load_modality(part.modality).companions(home).items():
            ours = Path(config.run_dir) / name
            if not ours.exists():
                ours.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(ours, content)
            elif ours.read_bytes() != content.encode():
                raise UserError(
                    f"{key}: {ours} differs from that of {home}, which the weights were trained "
                    "with; remove it, or choose another run_dir"
                )


class InitialWeights:
    """What ``init_from`` names.

    That is a run's folder or one of its checkpoints, a folder of transformers, USER/NAME on the
    Hub, or a file of the original authors (.safetensors, or .pt and .pth as fairseq and BEiT save
    them; nothing that is pickled in it is run).

    Args:
        config: of the run to start.

    Raises:
        UserError: there is no such thing, or it cannot start a run over several modalities.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.parts = config.parts()
        self.path = locate(config.init_from, KEY)
        self.is_file = self.path.is_file()
        self.is_hub = not self.is_file and is_hub_folder(self.path)
        folder = self.path.parent
        if self.is_file and self.path.name in WEIGHTS and is_hub_folder(folder):
            raise UserError(
                f"{KEY}: {self.path} is a part of a folder of transformers; name the folder, "
                f"{folder}"
            )
        if self.is_file and is_of_checkpoint(self.path):
            raise UserError(
                f"{KEY}: {self.path} is a part of a checkpoint; name the folder, {folder}"
            )
        if not self.is_file and not self.is_hub:
            self.path = find_checkpoint(self.path, KEY)
        elif len(self.parts) > 1:
            raise UserError(
                f"{KEY}: {self.path} holds one encoder, which can start a run over its modality "
                f"only; start each modality alone, or start this run over {', '.join(self.parts)} "
                "from another one over the same"
            )

    def check(self) -> None:
        """Refuse weights of another encoder; those of a file are looked at when they are loaded.

        Raises:
            UserError: it is another one; each key that differs is named with both values.
        """
        if self.is_file:
            return
        theirs = self._configs()
        self._check_modalities(theirs)
        for name, part in self.parts.items():
            with errors_of(name, self.parts):
                self._check_shape(part, theirs[name])

    def _check_modalities(self, theirs: Mapping[str, RunConfig]) -> None:
        mine, yours = list(self.parts), list(theirs)
        if len(mine) > 1 and set(mine) != set(yours):
            raise UserError(
                f"{KEY}: {self.path} is of a run over {', '.join(yours)}; a run over "
                f"{', '.join(mine)} starts from one over the same modalities"
            )
        if mine[0] not in theirs:
            self._refuse_other({"modality": mine[0]}, {"modality": ", ".join(yours)})

    def _check_shape(self, mine: RunConfig, yours: RunConfig) -> None:
        more: tuple[str, ...] = ()
        if not self.is_hub and mine.strategy == yours.strategy:
            more = OF_A_PREDICTOR[mine.strategy]
        here, there = _shape(mine, more), _shape(yours, more)
        if self.is_hub:
            for key, values in self._hub_folder.format.read_as.items():
                if values.get(here[key]) == there[key]:
                    there[key] = here[key]  # loading compares the tensors
        self._refuse_other(here, there)

    def bring_companions(self) -> None:
        """Copy what belongs to the weights into the run's folder.

        Raises:
            UserError: it is missing, or the run's folder holds another.
        """
        if not self.is_file:
            home = self.path if self.is_hub else run_folder(self.path)
            bring_companions(self.config, home, KEY)

    def load_into(self, model: Data2Vec) -> None:
        """Load student and teacher, and from a run or an original the predictors too.

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

    @cached_property
    def _hub_folder(self) -> HubFolder:
        return HubFolder(self.path, KEY)

    def _configs(self) -> dict[str, RunConfig]:
        if self.is_hub:
            return self._hub_folder.config().parts()
        return checkpoint_config(read_checkpoint(self.path)).parts()

    def _load_original(self, model: Data2Vec) -> None:
        (mine,) = self.parts
        student, teacher = _read_original(self.path)
        try:
            theirs = recognise(student)[0].name
            if theirs == mine and not load_original(model, student, teacher):
                logger.warning("%s: %s holds no prediction head; it is fresh", KEY, self.path)
        except UserError as error:
            raise UserError(f"{KEY}: {self.path}: {error}") from error
        self._refuse_other({"modality": mine}, {"modality": theirs})

    def _load_checkpoint(self, model: Data2Vec) -> None:
        checkpoint = read_checkpoint(self.path)
        parts = checkpoint_config(checkpoint).parts()
        others = parts.keys() - self.parts
        ours = model.state_dict()
        theirs = {
            name: tensor
            for name, tensor in checkpoint.model.items()
            if not any(name.startswith(f"{part}.{o}.") for part in BY_MODALITY for o in others)
        }
        for names, what in (
            (_of_a_strategy(ours.keys() - theirs.keys()), "are not in {} and are fresh"),
            (_of_a_strategy(theirs.keys() - ours.keys()), "of {} have no place here"),
        ):
            if names:
                logger.warning("%s: %s %s", KEY, ", ".join(names), what.format(self.path))
            for name in names:
                theirs.pop(name, None)
            theirs |= {name: ours[name] for name in names if name in ours}
        same = all(parts[n].teacher.scope == part.teacher.scope for n, part in self.parts.items())
        if not same:
            logger.warning("%s: the teacher starts as the student, by another scope", KEY)
            theirs = {n: t for n, t in theirs.items() if not n.startswith("teacher.")}
            theirs |= {name: ours[name] for name in ours if name.startswith("teacher.")}
        try:
            model.load_state_dict(theirs)
        except RuntimeError as error:
            reasons = " ".join(str(error).split())
            raise UserError(f"{KEY}: {self.path} does not fit the model: {reasons}") from error
        if not same:
            model.update_teacher(decay=0.0)

    def _load_hub_folder(self, model: Data2Vec) -> None:
        ((name, config),) = self.parts.items()
        modality, folder = load_modality(config.modality), self._hub_folder
        for key, value in folder.sections["input"].items():
            mine = getattr(config.input, key)
            if key not in modality.architecture and without_tuples(mine) != without_tuples(value):
                logger.warning(
                    "%s: input.%s is %s, the weights were made for %s", KEY, key, mine, value
                )
        for note in folder.load_into(model.student[name]):
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


def _of_a_strategy(names: Iterable[str]) -> list[str]:
    return sorted(n for n in names if any(fnmatch(n, pattern) for pattern in OF_A_STRATEGY))


def _shape(config: RunConfig, more: Sequence[str]) -> dict[str, Any]:
    """The keys that decide which parameters there are and what they compute."""
    architecture = load_modality(config.modality).architecture
    keys = [*SHAPE, *more, *(f"input.{key}" for key in architecture)]
    keys += [f"encoder.{key}" for key in asdict(config.encoder) if key not in NOT_SHAPE]
    shape = {key: without_tuples(config.value(key)) for key in keys}
    model = config.model
    return {
        **shape,
        # as far as it counts: the layers' width is rounded, and a folder tells that alone
        "model.mlp_ratio": model.mlp_width / model.width,
        "model.layer_scale": "more than 0" if model.layer_scale else 0,
    }


def _read_original(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    content = read_weights(path, KEY)
    model = content.get("model", content)
    student = _parameters(model, path)
    # BEiT keeps the teacher beside the student, fairseq among the parameters of what has it
    among = (value for name, value in model.items() if str(name).rpartition(".")[2] == "_ema")
    teacher = content.get("model_ema", next(among, None))
    return student, None if teacher is None else _parameters(teacher, path)


def _parameters(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise UserError(f"{KEY}: {path} holds no parameters")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
