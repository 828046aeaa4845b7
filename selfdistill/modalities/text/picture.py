"""Text for people: the pieces in boxes, masked ones coloured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import tokenizers
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from selfdistill.config import RunConfig
from selfdistill.modalities.picture import INK, MASKED, Area, SamplePicture, Shown, marked
from selfdistill.modalities.text.data import EXTENSIONS, TextPipeline, prepare, read_passage
from selfdistill.modalities.text.sentencepiece_json import SPACE
from selfdistill.modalities.text.tokenizer import MODEL_FILE, TOKENIZER_FILE

MONOSPACE = 0.602 / 72
"""Inches from one letter of DejaVu Sans Mono to the next, per point of its size."""
SIZE = 8.0
"""Points of the letters."""
ADVANCE = MONOSPACE * SIZE
LINE = 0.2
GAP = 0.03
LINES = 10
"""Of a sample; the rest of it is counted."""
VISIBLE = "#9E9E9E"
"""Faint boxes, on white and on a dark page."""


class TextPicture(SamplePicture):
    extensions = EXTENSIONS

    def __init__(self, config: RunConfig) -> None:
        self.pipeline: TextPipeline | None = None
        run = Path(config.run_dir)
        made = [run / name for name in (TOKENIZER_FILE, MODEL_FILE) if (run / name).exists()]
        if not config.input.tokenizer and not made:
            self.note = (
                "no tokenizer yet: the first run trains one, or input.tokenizer names one; shown "
                "as characters"
            )
            return
        with TemporaryDirectory(prefix="selfdistill-") as folder:
            for path in made:
                (Path(folder) / path.name).write_bytes(path.read_bytes())
            ready = prepare(replace(config, run_dir=folder))
            self.pipeline = TextPipeline(ready)

    def decode(self, members: Mapping[str, bytes]) -> str:
        return read_passage(members)

    def measures(self, value: str) -> dict[str, float]:
        characters: dict[str, float] = {"characters": len(value)}
        if self.pipeline is None:
            return characters
        return {"tokens": len(self.pipeline.tokenizer.encode_literally(value))} | characters

    def height(self, shown: Shown, width: float) -> float:
        return LINE * len(list(_lines(self._pieces(shown), width))[: LINES + 1])

    def _pieces(self, shown: Shown) -> list[tuple[str, str]]:
        """Kind (masked, piece, frame for <s> and </s>, none for plain text) and spelling."""
        if shown.masked is None or self.pipeline is None:
            return [("", word) for word in shown.value.replace("\n", " ").split(" ")]
        tokenizer = self.pipeline.tokenizer
        pieces = [piece_text(tokenizer.parsing, int(token)) for token in shown.value]
        kinds = ["masked" if hidden else "piece" for hidden in shown.masked]
        kinds[0] = "frame" if kinds[0] == "piece" else kinds[0]
        kinds[-1] = "frame" if kinds[-1] == "piece" else kinds[-1]
        return list(zip(kinds, pieces, strict=True))

    def draw(self, area: Area, shown: Shown) -> None:
        axes = area.axes(0, 0, area.width, area.height)
        axes.set_axis_off()
        axes.set_xlim(0, area.width)
        axes.set_ylim(area.height, 0)
        lines = list(_lines(self._pieces(shown), area.width))
        for number, line in enumerate(lines[:LINES]):
            left = 0.0
            for kind, spelling in line:
                wide = len(spelling) * ADVANCE + GAP
                colours = {"masked": (MASKED, 0.55), "piece": (VISIBLE, 0.22)}
                if kind in colours:
                    colour, alpha = colours[kind]
                    corner = (left, number * LINE + 0.02)
                    size = (wide, LINE - 0.04)
                    axes.add_patch(Rectangle(corner, *size, color=colour, alpha=alpha, lw=0))
                _write(axes, left + GAP / 2, number, spelling, "black" if kind != "frame" else INK)
                left += wide + GAP
        left_out = sum(map(len, lines[LINES:]))
        if left_out:
            _write(axes, 0, LINES, f"and {left_out} more", INK)

    def html(self, shown: Shown) -> str:
        if shown.masked is None or self.pipeline is None:
            return f'<p class="text">{marked([("", shown.value)])}</p>'
        # a space is one, so that words can be searched for
        spelled = [(kind, text.replace(SPACE, " ")) for kind, text in self._pieces(shown)]
        return f'<p class="text">{marked(spelled)}</p>'


def _write(axes: Axes, left: float, line: int, text: str, colour: str) -> None:
    axes.text(
        left,
        line * LINE + LINE / 2,
        text,
        color=colour,
        fontsize=SIZE,
        family="monospace",
        va="center_baseline",
        parse_math=False,
    )


def piece_text(tokenizer: tokenizers.Tokenizer, token: int) -> str:
    """A token as text, with ``SPACE`` where it begins with a space."""
    piece = str(tokenizer.id_to_token(token))
    if isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel):
        piece = str(tokenizers.decoders.ByteLevel().decode([piece])).replace(" ", SPACE)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in piece)


def _lines(pieces: Sequence[tuple[str, str]], width: float) -> Iterator[list[tuple[str, str]]]:
    """The pieces, as many in each line as fit into ``width`` inches."""
    line: list[tuple[str, str]] = []
    left = 0.0
    for kind, spelling in pieces:
        most = int((width - GAP) / ADVANCE)
        for start in range(0, max(len(spelling), 1), most):
            part = spelling[start : start + most]
            wide = len(part) * ADVANCE + 2 * GAP
            if line and left + wide > width:
                yield line
                line, left = [], 0.0
            line.append((kind, part))
            left += wide
    yield line
