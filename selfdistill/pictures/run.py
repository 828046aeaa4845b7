"""The pictures of a run, drawn at its evaluations; what draws is imported when it is needed."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.config import RunConfig
from selfdistill.data.loader import Source
from selfdistill.durable import write_atomically
from selfdistill.engine.metrics import MetricsWriter
from selfdistill.modalities.backbone import Backbone
from selfdistill.probes.evaluate import Evaluator
from selfdistill.run_folder.layout import DRAWN

if TYPE_CHECKING:
    from selfdistill.pictures.drawing import Drawing

logger = logging.getLogger(__name__)


class Pictures:
    """Draws what the encoders of one modality make of samples; the main process has it.

    A failure costs one warning and all later pictures, never the run. The training's random
    numbers, modes and weights stay as they are.

    Args:
        config: of the modality, prepared.
        source: of the training data, which is drawn where there are no labelled sets.
        evaluator: of the labelled sets; it has evaluated when this draws. None: there are none.
        folder: of the files; made where it is missing.
        writer: shows them in TensorBoard.
        prefix: what stands before the pictures' names there.
    """

    def __init__(
        self,
        config: RunConfig,
        source: Source,
        evaluator: Evaluator | None,
        folder: Path,
        writer: MetricsWriter | None,
        prefix: str,
    ) -> None:
        self._config, self._source, self._evaluator = config, source, evaluator
        self._folder, self._writer, self._prefix = folder, writer, prefix
        self._drawing: Drawing | None = None
        self._fails = False

    @property
    def needs_untrained(self) -> bool:
        """Whether the untrained encoder has to be given."""
        return not self._fails and (self._drawing is None or not self._drawing.knows_untrained)

    def lacks(self, step: int) -> bool:
        """Whether some are not there, or are of an earlier step."""
        try:
            return int(json.loads((self._folder / DRAWN).read_bytes())["step"]) < step
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def __call__(self, step: int, untrained: Backbone | None, trained: Backbone) -> None:
        """Draw everything anew.

        Args:
            step: for the captions.
            untrained: the encoder before training; may be None unless ``needs_untrained``.
        """
        if self._fails:
            return
        try:
            from selfdistill.pictures.drawing import Drawing, apart, as_png, file_name
            from selfdistill.plots import pixels

            with apart():
                if self._drawing is None:
                    self._drawing = Drawing(self._config, self._source, self._evaluator)
                for name, figure in self._drawing.figures(step, untrained, trained):
                    content = as_png(figure)
                    self._folder.mkdir(parents=True, exist_ok=True)
                    write_atomically(self._folder / f"{file_name(name)}.png", content)
                    if self._writer is not None:
                        self._writer.write_picture(step, self._prefix + name, pixels(content))
            write_atomically(self._folder / DRAWN, json.dumps({"step": step}) + "\n")
        except Exception as error:
            self._fails = True
            logger.warning("pictures cannot be drawn (%r); the run goes on without them", error)
