"""An estimate on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cluster.disk import readable_bytes
from xdist_train.estimation.estimate import Estimate
from xdist_train.estimation.model import Epoch

__all__ = ["print_estimate"]

_PARTS = {
    "model": "the model",
    "input": "waiting for the loader",
    "gradients": "gradients on their way",
    "idle": "uneven steps",
    "slowest": "the slowest worker",
    "evaluation": "evaluation on val",
}


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Everything that is told of it."""
    console.print(_summary(estimate))
    console.print(_others_table(estimate))
    for title, lines in (("measured here", estimate.measured), ("assumed", estimate.assumed)):
        for line in lines:
            console.print(f"{title}: {line}", highlight=False, markup=False)


def _summary(estimate: Estimate) -> Table:
    work, epoch, memory = estimate.work, estimate.epoch, estimate.memory
    hardware, epochs = estimate.config.hardware, estimate.config.train.epochs
    title = f"{work.train_images:,} training images, {work.workers} workers on {work.nodes} node(s) ({hardware.device})"
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("an epoch", _time(epoch.later), f"{epoch.steps:,} steps; held up by: {epoch.bottleneck}")
    for key, what in _PARTS.items():
        seconds = getattr(epoch, key)
        table.add_row(f"  {what}", _time(seconds), f"{seconds / epoch.later:.1%}")
    table.add_row("the first epoch", _time(epoch.first), f"held up by: {epoch.first_bottleneck}")
    table.add_row("  fetching the data set", _time(epoch.fetch), "")
    table.add_row("  decoding it once", _time(epoch.decode), "")
    table.add_row(f"{epochs} epochs", _time(estimate.run_seconds), "without starting and testing")
    table.add_section()
    table.add_row("memory of a worker", readable_bytes(int(memory.whole)), _fits(estimate))
    table.add_row("  weights, gradients, moments", readable_bytes(int(memory.weights)), "")
    table.add_row("  activations", readable_bytes(int(memory.activations)), f"micro batches of {work.micro_batch_size}")
    table.add_row("disk of a node", readable_bytes(int(memory.disk)), "")
    table.add_row("from the storage", readable_bytes(int(estimate.fetched_bytes)), "once a run and node")
    table.add_row("a checkpoint", readable_bytes(int(estimate.saved_bytes)), "")
    table.add_section()
    unit = "" if hardware.price_per_hour else "worker hours"
    table.add_row("an epoch costs", f"{estimate.cost:,.3g}", unit)
    table.add_row("the run costs", f"{estimate.cost * estimate.run_seconds / epoch.later:,.3g}", unit)
    return table


def _fits(estimate: Estimate) -> str:
    if estimate.memory.fits is None:
        return ""
    return "fits" if estimate.memory.fits else "does not fit: lower train.micro_batch_size"


def _others_table(estimate: Estimate) -> Table:
    table = Table(title="the same step on other numbers of workers")
    for name in ("workers", "an epoch", "images/s", "efficiency", "held up by"):
        table.add_column(name, justify="left" if name == "held up by" else "right")
    alone = _speed(estimate, estimate.others[0][1]) / estimate.others[0][0] if estimate.others else 1.0
    for workers, epoch in estimate.others:
        speed = _speed(estimate, epoch)
        efficiency = f"{speed / workers / alone:.0%}"
        table.add_row(str(workers), _time(epoch.later), f"{speed:,.0f}", efficiency, epoch.bottleneck)
    return table


def _speed(estimate: Estimate, epoch: Epoch) -> float:
    return estimate.work.train_images / epoch.later


def _time(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.3g} s"
