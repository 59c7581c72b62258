"""The table of runs that `runs` prints."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.table import Table

from cluster.runs import is_silent
from cluster.terminal import printable

__all__ = ["runs_table"]


def runs_table(found: dict[str, dict[str, Any]]) -> Table:
    """One row a run, a search or a repetition: name, status, what was selected, when it was last heard of."""
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "status", "selected", "workers", "last heard of"):
        table.add_column(heading, no_wrap=heading == "run")
    for name, record in found.items():
        if "error" in record:
            table.add_row(printable(name), record["status"], "-", "-", "-")
            continue
        heard = datetime.fromtimestamp(record["heartbeat"]).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(printable(name), _status(record), _selected(record), _size(record), heard)
    return table


def _size(record: dict[str, Any]) -> str:
    """Workers, or what it is made of."""
    made_of = next((what for what in ("trials", "parts") if what in record), None)
    return f"{len(record[made_of])} {made_of}" if made_of else str(record["attempts"][-1].get("workers", "-"))


def _status(record: dict[str, Any]) -> str:
    if is_silent(record):
        return "running? (silent)"
    reason = record.get("reason")
    kind = reason["kind"] if isinstance(reason, dict) else reason
    return f"{record['status']} ({kind})" if kind else str(record["status"])


def _selected(record: dict[str, Any]) -> str:
    if "trials" in record:
        return f"trial {record['best']}" if record["best"] else "-"
    if pooled := record.get("pooled"):
        return f"pooled: {pooled['metric']} {pooled['value']:.4f}"
    chosen = record["selected"]
    return f"epoch {chosen['epoch'] + 1}: {chosen['metric']} {chosen['value']:.4f}" if chosen else "-"
