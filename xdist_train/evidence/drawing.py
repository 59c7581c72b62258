"""Drawings in one style: SVG by matplotlib, without pyplot. Pure; knows nothing of what is drawn.

Text stays text (selectable, read aloud, in the reader's font), and is never read as mathematics.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from cluster.terminal import printable

__all__ = ["drawing_style", "svg_element", "svg_image"]

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "equal figures are equal bytes",
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


@contextmanager
def drawing_style() -> Iterator[None]:
    """The style for the block; drawings are made and written in it."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A reader's font may have what this machine's has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def svg_element(figure: Figure, name: str, description: str) -> str:
    """The drawing as an element of a page, its ids made different from those of other drawings."""
    text = _svg(figure)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r'( id="|"#|url\(#)', rf"\1{name}-", tag[0]), text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(printable(description))}"', 1)


def svg_image(figure: Figure, description: str) -> str:
    """The drawing as a picture, for pages whose policy forbids style in elements."""
    data = base64.b64encode(_svg(figure).encode()).decode()
    return f'<img alt="{escape(printable(description))}" src="data:image/svg+xml;base64,{data}">'


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
