"""Jobs of a cluster as a table for a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from rich.table import Table

from cluster.jobs import Job
from cluster.terminal import printable

__all__ = ["job_table"]


def job_table(jobs: Sequence[Job]) -> Table:
    """One row a job, in the order given."""
    table = Table(box=None, pad_edge=False)
    for name in ("job", "status", "started", "took"):
        table.add_column(name, no_wrap=True)
    table.add_column("command", no_wrap=True, overflow="ellipsis")
    for job in jobs:
        started = datetime.fromtimestamp(job.started).strftime("%Y-%m-%d %H:%M") if job.started else "-"
        took = str(timedelta(seconds=round((job.ended or time.time()) - job.started))) if job.started else "-"
        code = f" ({job.exit_code})" if job.exit_code else ""
        table.add_row(printable(job.id), f"{job.status.lower()}{code}", started, took, printable(job.command))
    return table
