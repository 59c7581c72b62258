"""Monitor, live line and listing: what a person sees of a run."""

from __future__ import annotations

import io
import subprocess
import sys

from rich.console import Console

from xdist_train.training.listing import runs_table
from xdist_train.training.live import live_line, progress_text
from xdist_train.training.messages import Failure, MonitorView, Progress
from xdist_train.training.monitor import RunMonitor

_PROGRESS = Progress(
    epoch=1, epochs=4, step=30, steps_per_epoch=60, loss=0.51234, images_per_s=1234.5, data_wait_share=0.034
)
_ROW = {"kind": "epoch", "epoch": 0, "train_loss": 1.0, "selected": True}
_ROW |= {f"val_{name}": 0.5 for name in ("loss", "accuracy", "balanced_accuracy", "auroc_macro")}


def test_the_line_names_everything() -> None:
    """Epoch, step, loss, images a second, data wait and time left."""
    expected = "epoch 2/4  step 30/60  loss 0.5123  1,234 images/s  data wait 3%  1:01:05 left"
    assert expected == progress_text(_PROGRESS, 3665)


def test_every_epoch_is_printed_once_however_rarely_the_driver_looks() -> None:
    """Two epochs between two looks leave two lines; phases are named as they change."""
    out = io.StringIO()
    with live_line(Console(file=out, width=200)) as line:
        line.show(MonitorView())
        rows = (_ROW, {**_ROW, "epoch": 1, "selected": False})
        line.show(MonitorView(phase="training", progress=_PROGRESS, epoch_rows=rows))
        line.show(MonitorView(phase="training", progress=_PROGRESS, epoch_rows=rows))
    lines = out.getvalue().splitlines()
    assert ["starting workers", "epoch 1:", "epoch 2:", "training"] == [
        text if not text.startswith("epoch") else text[:8] for text in lines
    ]
    assert [True, False] == [text.endswith("*") for text in lines[1:3]]


def test_the_monitor_holds_the_last_words() -> None:
    """Newest progress, all epoch rows, published keys in order and once, the first failure, and the wish to stop."""
    monitor = RunMonitor()
    assert (1, 2) == (monitor.begin(), monitor.begin())
    assert not monitor.push(phase="training", progress=_PROGRESS)
    monitor.end_epoch(_ROW)
    monitor.publish(["a", "b"])
    monitor.publish(["b", "c"])
    monitor.note("careful")
    monitor.ask_stop()
    assert monitor.push(phase="evaluating val")
    first = Failure(kind="x", message="first")
    monitor.fail(first)
    monitor.fail(Failure(kind="y", message="second"))
    expected = MonitorView(
        phase="evaluating val",
        progress=_PROGRESS,
        epoch_rows=(_ROW,),
        failure=first,
        group_starts=2,
        stopping=True,
        notes=("careful",),
        published=("a", "b", "c"),
    )
    assert expected == monitor.read()


def test_the_monitor_is_light() -> None:
    """The actor's process loads neither torch nor anything else heavy for it."""
    code = "import sys, xdist_train.training.monitor; print({'torch', 'pyarrow', 'cv2'} & set(sys.modules))"
    assert "set()\n" == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout


def test_runs_are_listed_with_status_and_selection() -> None:
    """A failed run shows why; names are escaped."""
    selected = {"epoch": 1, "metric": "accuracy", "value": 0.875}
    attempts = [{"workers": 2}]
    table = runs_table(
        {
            "lost": {"status": "running", "selected": None, "attempts": attempts, "heartbeat": 0},
            "good": {"status": "finished", "selected": selected, "attempts": attempts, "heartbeat": 0},
            "bad\x1b": {
                "status": "failed",
                "reason": {"kind": "lost"},
                "selected": None,
                "attempts": attempts,
                "heartbeat": 0,
            },
        }
    )
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    text = out.getvalue()
    assert [] == [
        part
        for part in ("epoch 2: accuracy 0.8750", "failed (lost)", "running? (silent)", "bad\\x1b")
        if part not in text
    ]
