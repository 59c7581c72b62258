"""Pieces of an HTML page that is one file and needs nothing from elsewhere. Pure; knows nothing of what is said.

Every text goes through `text`, so that no name, value or reason becomes markup. A page's policy allows its own style
and script by their digests, pictures as data, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from cluster.terminal import printable

__all__ = ["LONG", "page", "section", "table", "text"]

LONG = ' class="long"'
"""Of a cell whose text is folded."""

_STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --soft: #f4f4f4; --mark: #fdeee2; }
@media (prefers-color-scheme: dark) { :root { --line: #505050; --soft: #2a2a2a; --mark: #4a2c12; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: 0.3rem; }
.verdict { font-size: 1.1rem; background: var(--soft); padding: 1rem 1.2rem; border-radius: 6px; }
.scroll { overflow: auto; max-height: 45rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
caption { text-align: left; padding-bottom: 0.5rem; }
th, td { text-align: left; padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.long { min-width: 18rem; white-space: pre-wrap; overflow-wrap: anywhere; }
thead th { background: var(--soft); vertical-align: bottom; position: sticky; top: 0; }
tbody th { font-weight: 600; white-space: nowrap; }
tr.best { background: var(--mark); }
th button { font: inherit; font-weight: bold; color: inherit; background: none; border: 0; padding: 0; text-align: left;
  cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
pre { background: var(--soft); padding: 0.8rem 1rem; border-radius: 6px; overflow-x: auto; }
figure { margin: 1rem 0 2.5rem; }
figure svg { background: #fff; width: 100%; height: auto; border-radius: 6px; }
"""

# Rows without a value stay last, whichever way.
_SORT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.key;
    const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "") :
      sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b))));
  }));
}
"""


def page(title: str, parts: Sequence[str], *, style: str = "", script: str = "", closed: bool = False) -> str:
    """A whole page.

    Args:
        parts: of its body, in order.
        style: beside that of all pages.
        script: beside the sorting of tables.
        closed: whether a policy in it allows nothing but this style, this script and pictures in it. It forbids style
            in elements, and so drawings as elements.
    """
    style, script = _STYLE + style, _SORT + script
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">\n' if closed else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'{policy}<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A part of a page with a heading."""
    return "\n".join([f"<section>\n<h2>{text(title)}</h2>", *parts, "</section>"])


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, folded: bool = True) -> str:
    """A table of texts whose first column names the rows; long texts are folded, figures better not."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    look = LONG if folded else ""
    lines = [
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td{look}>{text(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    ]
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table>\n<caption>{text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def text(words: str) -> str:
    """Words as they are read, whatever is in them."""
    return escape(printable(words))


def _policy(style: str, script: str) -> str:
    return f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"


def _digest(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
