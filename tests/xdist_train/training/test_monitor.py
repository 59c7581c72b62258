"""Monitor, live line and listing: what a person sees of a run."""

from __future__ import annotations

import io
import subprocess
import sys

from rich.console import Console

from xdist_train.training.listing import runs_table
from xdist_train.training.live import live_line, progress_text
from xdist_train.training.messages import Beat, Failure, MonitorView, Progress
from xdist_train.training.monitor import RunMonitor

_PROGRESS = Progress(
    epoch=1,
    epochs=4,
    step=30,
    steps_per_epoch=60,
    loss=0.51234,
    images_per_s=1234.5,
    step_s=0.039,
    data_wait_share=0.034,
    new_steps=25,
    new_images=1200,
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
    monitor.join(3, 2)
    (group,) = monitor.read().groups
    assert (3, 2) == (group["attempt"], group["workers"])
    expected = MonitorView(
        phase="evaluating val",
        progress=_PROGRESS,
        epoch_rows=(_ROW,),
        failure=first,
        group_starts=2,
        groups=(group,),
        stopping=True,
        notes=("careful",),
        published=("a", "b", "c"),
    )
    assert expected == monitor.read()


def _beat(rank: int, group: int) -> Beat:
    return Beat(
        rank=rank, host="h", node="n", pid=1, group=group, phase="computing", epoch=0, step=0, idle_s=0, slack_s=0
    )


def test_only_the_present_group_is_heard() -> None:
    """Beats of a group that has ended, and of one that is at its end, are not kept; neither are those who left."""
    monitor = RunMonitor()
    monitor.beat(_beat(0, 0))
    assert monitor.read().beats == ()
    monitor.begin()
    for beat in (_beat(0, 0), _beat(1, 1), _beat(2, 1)):
        monitor.beat(beat)
    monitor.leave(2)
    assert [0, 1] == [beat.rank for beat, _ in monitor.read().beats]
    monitor.lose("gone")
    monitor.beat(_beat(1, 1))
    assert (monitor.read().beats, monitor.read().waiting_s is None) == ((), False)
    monitor.begin()
    monitor.beat(_beat(1, 1))
    monitor.beat(_beat(0, 2))
    assert [0] == [beat.rank for beat, _ in monitor.read().beats]


def test_a_stop_to_move_is_taken_back_and_one_for_good_is_not() -> None:
    """The next group goes on after the first, and stops after the second."""
    monitor = RunMonitor()
    monitor.ask_stop(for_good=False)
    assert (monitor.push(), monitor.ending()) == (True, False)
    monitor.go_on()
    assert (monitor.push(), monitor.ending()) == (False, False)
    monitor.ask_stop()
    monitor.go_on()
    assert (monitor.push(), monitor.ending()) == (True, True)


def test_warnings_are_kept_up_to_a_number() -> None:
    """A storage that stumbles all day does not fill run.json."""
    monitor = RunMonitor()
    for number in range(1000):
        monitor.note(str(number))
    assert (201, "there were more warnings than are kept") == (len(monitor.read().notes), monitor.read().notes[-1])


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
