"""A page measured in inches: its header, text, pictures and plots at given places, and its bytes.

Owns paper, ink and the colours, which people with any colour vision can tell apart. Knows nothing of data sets.
matplotlib is imported when a page is made.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cluster.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

__all__ = ["COLOURS", "INK", "LABEL_WIDTH", "MARGIN", "PALE", "Page", "shortened"]

INK, PALE, _PAPER = "#1b2733", "#66727f", "#e8ecf0"  # the paper is gray so that white edges of pictures show
COLOURS = {"blue": "#0072b2", "orange": "#e69f00", "green": "#009e73", "red": "#d55e00"}  # Okabe and Ito
MARGIN = 0.25
_MOST_LETTERS = 30
LABEL_WIDTH = 1.75
"""What `Page.label` takes from the left edge on, inches."""


class Page:
    """Paper of a size; places are inches from its upper left corner. Names in texts are shown, never interpreted."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor=_PAPER)

    def header(self, title: str, facts: str = "") -> None:
        """The title, left, and facts in pale ink, right, of which the title leaves room for."""
        self.write(MARGIN, 0.42, title, size=13, weight="bold")
        self.write(self.width - MARGIN, 0.42, facts, size=9, color=PALE, ha="right")

    def write(self, x: float, y: float, text: str, **style: Any) -> Text:
        """A line of text that stands on y."""
        style = {"color": INK, "va": "baseline", "parse_math": False, **style}
        return self.figure.text(x / self.width, 1 - y / self.height, printable(text), **style)

    def label(self, y: float, name: str, note: str) -> None:
        """The name of a row, left, as much of it as there is room for, and a note below; y is where the row begins."""
        written = self.write(MARGIN, y + 0.2, name, size=10, weight="bold")
        room = (LABEL_WIDTH - MARGIN - 0.08) * self.figure.dpi
        for most in range(min(len(name), _MOST_LETTERS), 0, -1):
            written.set_text(shortened(name, most))
            if written.get_window_extent().width <= room:
                break
        self.write(MARGIN, y + 0.38, note, size=8.5, color=PALE)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """A plot whose frame has its upper left corner at (x, y)."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes: Axes = self.figure.add_axes(box, facecolor="white")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(PALE)
        axes.tick_params(labelsize=8, colors=PALE, labelcolor=INK)
        return axes

    def picture(self, x: float, y: float, width: float, height: float, pixels: npt.NDArray[np.uint8]) -> None:
        """Pixels [height, width, 1 or 3], stretched to the box."""
        axes = self.axes(x, y, width, height)
        shown = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, aspect="auto")
        axes.set_axis_off()

    def encode(self, kind: str, dpi: int = 160) -> bytes:
        """The page as png, pdf, svg or jpg."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format=kind, dpi=dpi)
        return buffer.getvalue()


def shortened(text: str, most: int) -> str:
    """The text with an ellipsis where it is longer than so many letters."""
    text = printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"
