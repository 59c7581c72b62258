"""An examination from a terminal: of the cluster that this machine joins, or of one far away, by a job on its head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.doctor import Finding, Places, Visit, examine
from cluster.errors import InputError
from cluster.jobs import open_jobs
from cluster.session import call_worker, cluster_resources, connect, node_names
from cluster.terminal import printable

__all__ = ["examine_here", "examine_there", "findings_table"]

_SCALE_S = 900.0
_LIMIT_S = 600.0 + _SCALE_S
_OPTIONS = {"data_uri": "--data", "storage_uri": "--storage", "cache_dir": "--cache-dir"}


def examine_here(places: Places, console: Console) -> list[Finding]:
    """Of the cluster that commands on this machine would join, or start."""
    with console.status("connecting to Ray ...") as status, connect() as ray:
        if cluster_resources(ray).autoscaling and not node_names(ray):
            status.update(f"waiting for the autoscaler to start a node, up to {_SCALE_S:.0f} s ...")
            call_worker(ray, _SCALE_S)
        return list(examine(Visit(ray, places), lambda what: status.update(f"looking at: {what} ...")))


def examine_there(address: str, places: Places, console: Console) -> list[Finding]:
    """The same, done by a job on the head of another cluster, and what is seen from here.

    Raises:
        InputError: the cluster does not let this command in, or its head cannot run the program.
    """
    with console.status(f"a job of {address} is looking ..."):
        jobs = open_jobs(address)
        job_id = jobs.submit(["doctor", "--json", *_arguments(places)])
        job = jobs.wait(job_id, _LIMIT_S)
        words = jobs.log(job_id)
    way = Finding(
        what=f"the way to {jobs.url}",
        ok=not jobs.warning,
        told="the token is not read on the way" if not jobs.warning else jobs.warning.partition(". ")[0],
        todo=jobs.warning.partition(". ")[2],
    )
    for line in words.splitlines():
        if line.startswith("[{"):
            return [way, *(Finding(**values) for values in json.loads(line))]
    raise InputError(f"the head of {jobs.url} could not look: {job.status.lower()}. It said: {words[-1500:].strip()}")


def _arguments(places: Places) -> list[str]:
    values = asdict(places)
    told = [part for key, option in _OPTIONS.items() if values[key] for part in (option, values[key])]
    return [*told, "--cache-limit-gib", str(places.cache_limit_gib)]


def findings_table(findings: Sequence[Finding]) -> Table:
    """Green and red lines; what to do stands under the red ones."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("NO", style="bold red")
        told = Text(printable(finding.told))
        if not finding.ok:
            told.append(f"\n-> {printable(finding.todo)}", style="yellow")
        table.add_row(mark, printable(finding.what), told)
    return table
