"""The one quiet line that a person watches while a run goes on; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from cluster.terminal import LiveArea, live_area, printable
from xdist_train.training.messages import MonitorView, Progress

__all__ = ["LiveLine", "duration_text", "live_line", "phase_text", "progress_text"]

_WAITING_SAID_S = 15.0


def progress_text(progress: Progress, left_s: float | None) -> str:
    """Epoch, step, loss, images a second, data-wait share and time left."""
    text = (
        f"epoch {progress.epoch + 1}/{progress.epochs}  step {progress.step}/{progress.steps_per_epoch}  "
        f"loss {progress.loss:.4f}  {progress.images_per_s:,.0f} images/s  data wait {progress.data_wait_share:.0%}"
    )
    return text if left_s is None else f"{text}  {duration_text(left_s)} left"


def phase_text(view: MonitorView) -> str:
    """What a run does, in words."""
    if view.stopping:
        return "stopping behind a checkpoint"
    return "starting workers" if view.waiting_s is not None else view.phase


def duration_text(seconds: float) -> str:
    """1:05 or 2:00:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class LiveLine:
    """Draws MonitorViews; epochs leave a line behind, the rest is overwritten."""

    def __init__(self, console: Console, area: LiveArea) -> None:
        self.console, self._area = console, area
        self._rows_shown = self._notes_shown = 0
        self._first: tuple[float, float] | None = None
        self._phase = ""
        self._waiting_said = -_WAITING_SAID_S

    def show(self, view: MonitorView, waiting: str = "") -> None:
        """Draw what changed.

        Args:
            waiting: what the run waits for before it can go on.
        """
        for note in view.notes[self._notes_shown :]:
            self.console.print(f"warning: {printable(note)}", highlight=False, markup=False, soft_wrap=True)
        self._notes_shown = len(view.notes)
        for row in view.epoch_rows[self._rows_shown :]:
            self.console.print(_epoch_text(row), highlight=False, soft_wrap=True)
        self._rows_shown = len(view.epoch_rows)
        if self._area.is_drawn:
            text = waiting or self._line(view)
            self._area.draw(Text(text, overflow="ellipsis", no_wrap=True))
        if not self.console.is_terminal:
            self._say(waiting, phase_text(view))

    def _say(self, waiting: str, phase: str) -> None:
        """Where lines stay: a phase as it begins, and what is waited for, again and again but not often."""
        now = time.monotonic()
        if waiting and now - self._waiting_said > _WAITING_SAID_S:
            self._waiting_said = now
            self.console.print(waiting, highlight=False, markup=False, soft_wrap=True)
        elif not waiting and phase != self._phase:
            self.console.print(phase, highlight=False, markup=False)
            self._phase = phase

    def _line(self, view: MonitorView) -> str:
        if view.progress is None or phase_text(view) != "training":
            return f"{phase_text(view)} ..."
        return progress_text(view.progress, self._left_s(view.progress))

    def _left_s(self, progress: Progress) -> float | None:
        """By the pace since this driver first saw a step; evaluation time is in it."""
        done = progress.epoch + progress.step / max(progress.steps_per_epoch, 1)
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        since, first = self._first
        if done - first < 0.02:
            return None
        return (now - since) / (done - first) * (progress.epochs - done)


def _epoch_text(row: dict[str, Any]) -> str:
    shown = {name: row[f"val_{name}"] for name in ("loss", "accuracy", "balanced_accuracy", "auroc_macro")}
    figures = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in shown.items())
    mark = "  *" if row["selected"] else ""
    return f"epoch {row['epoch'] + 1}: train loss {row['train_loss']:.4f}  val {figures}{mark}"


@contextmanager
def live_line(console: Console) -> Iterator[LiveLine]:
    """A LiveLine for the block."""
    with live_area(console, "connecting to Ray ...") as area:
        yield LiveLine(console, area)
