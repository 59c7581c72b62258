"""What a bench reports and where it is kept: rows, and one section a bench in RESULTS.md.

A row is a claim: what, against what, how many times measured, on what. Text of RESULTS.md outside of the
markers is a person's and is kept.
"""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = [
    "RESULTS_PATH",
    "BenchSkippedError",
    "Row",
    "compare",
    "hardware",
    "measured",
    "median_interval",
    "versions",
    "write_section",
]

RESULTS_PATH = Path(__file__).parent / "RESULTS.md"
_HEAD = """# Results

Every performance claim of this project is a row here. Sections between markers are written by
`python -m tests.bench`; spread is the least and the most of n rounds. The ratio is ours over theirs. Ratios are
taken in one run, contenders in turns; absolute figures of different sections were measured on different days, and hosts
that share a name may differ by a factor of two.
"""


class BenchSkippedError(Exception):
    """A bench cannot run here; the text says what is missing."""


def hardware() -> str:
    """This machine, in words."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return f"{os.cpu_count()} x {names[0].strip() if names else platform.processor() or platform.machine()}"


def versions(*packages: str) -> str:
    """Installed versions, for a row: `python 3.11.7, torch 2.13.0`."""
    found = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One claim.

    `ratio` is ours over theirs, None where there is no other contender; `goal` is what was asked for.
    """

    what: str
    against: str = ""
    ratio: float | None = None
    goal: str = ""
    n: int
    median: float
    spread: tuple[float, float]
    unit: str
    versions: str
    hardware: str = field(default_factory=hardware)
    command: str


def measured(what: str, values: Sequence[float], **details: str) -> Row:
    """A row of figures of one contender; `details` are the row's other fields."""
    spread = (min(values), max(values))
    return Row(what=what, n=len(values), median=statistics.median(values), spread=spread, **details)  # type: ignore[arg-type]


def compare(what: str, values: Sequence[float], against: str, others: Sequence[float], **details: str) -> Row:
    """A row of two contenders measured in turns; the ratio is the median of the rounds' own ratios."""
    ratio = statistics.median(one / other for one, other in zip(values, others, strict=True))
    row = measured(what, values, **details)
    return Row(**{**vars(row), "against": against, "ratio": ratio})


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """At least 95 % of the median, from the order of values alone: the k-th least and the k-th most of them.

    The narrowest such pair (Conover 1999, 3.2); with fewer than six values there is none, and it is the whole spread.
    """
    ordered, count = sorted(values), len(values)
    below = [sum(math.comb(count, number) for number in range(k + 1)) / 2**count for k in range(count // 2)]
    place = max(sum(share <= 0.025 for share in below) - 1, 0)
    return ordered[place], ordered[count - 1 - place]


def write_section(path: Path, name: str, title: str, rows: Iterable[Row]) -> None:
    """Replace a bench's section, or append it where there is none."""
    text = path.read_text() if path.exists() else _HEAD
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{_render(title, list(rows))}{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        text = f"{text.rstrip()}\n\n{begin}{end}\n"
    path.write_text(pattern.sub(lambda _: section, text, count=1))


def _render(title: str, rows: Sequence[Row]) -> str:
    columns = ("what", "median", "spread", "unit", "n", "against", "ratio", "goal")
    table = [columns, ("---", "---:", "---:", "---", "---:", "---", "---:", "---"), *map(_cells, rows)]
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    notes = dict.fromkeys(f"- {row.hardware}; {row.versions}; `{row.command}`\n" for row in rows)
    return f"## {title}\n\n{lines}\n{''.join(notes)}"


def _cells(row: Row) -> tuple[str, ...]:
    spread = f"{_figure(row.spread[0])} – {_figure(row.spread[1])}"
    ratio = "" if row.ratio is None else _figure(row.ratio)
    return row.what, _figure(row.median), spread, row.unit, str(row.n), row.against, ratio, row.goal


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
