"""Figures as a table for the terminal. Knows the report's form, not where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cluster.terminal import printable

__all__ = ["TITLES", "figure_cells", "figure_text", "figures_table"]

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "mcc": "MCC",
    "auroc_macro": "AUROC, macro",
    "ece": "calibration error",
}
_PER_CLASS = ("sensitivity", "specificity", "auroc")


def figures_table(report: dict[str, Any], title: str = "") -> Table:
    """Every figure with its 95 % interval: the whole set's first, then each class's.

    Args:
        report: from `evaluation_report`.
        title: printed above, e.g. `test`.
    """
    counts = f"{report['n_images']} images, {report['n_patients']} patients"
    table = Table(title=Text(printable(f"{title}: {counts}" if title else counts)))
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for key, name in TITLES.items():
        table.add_row(name, *figure_cells(report[key]))
    for class_name, figures in report["per_class"].items():
        table.add_section()
        table.add_row(Text(printable(f"{class_name} ({figures['n']})"), style="bold"))
        for key in _PER_CLASS:
            table.add_row(f"  {key.replace('auroc', 'AUROC')}", *figure_cells(figures[key]))
    if report.get("prior"):
        table.caption = "Training moved the classes' shares (sampler.alpha or class weights): see `prior`."
    return table


def figure_text(figure: Mapping[str, float | None]) -> str:
    """A figure with its interval, in one text."""
    value, interval = figure_cells(figure)
    return value if interval == "-" else f"{value} ({interval})"


def figure_cells(figure: Mapping[str, float | None]) -> tuple[str, str]:
    """A figure and its interval as texts."""
    low, high = figure["low"], figure["high"]
    interval = "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return ("-" if figure["value"] is None else f"{figure['value']:.3f}"), interval
