"""The driver's look at a running job: the live line, the record's heartbeat, hangs, nodes about to go, signals."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Protocol

from cluster.errors import StoreError, StoreRefusedError
from cluster.runs import StaleDriverError
from cluster.session import cluster_resources, draining_nodes, free_resources
from xdist_train.config import Config
from xdist_train.training.hang import HangWatch
from xdist_train.training.job import Job
from xdist_train.training.live import LiveLine
from xdist_train.training.messages import Ending, MonitorView
from xdist_train.training.record import RunRecord

__all__ = ["Guide", "StopWish", "Watch"]

_POLL_S = 0.5
_CLUSTER_S = 2.0


class StopWish:
    """Whether SIGINT or SIGTERM came since the block began; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopWish:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        # No call of Ray here: the signal may have come in the middle of one.
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Guide(Protocol):
    """On whose behalf a run is launched, if not a user's: sees it go on, and may end it."""

    def look(self, view: MonitorView) -> Ending | None:
        """Called about twice a second and once at the end; a status ends the run behind a checkpoint, with it."""


class Watch:
    """One run as its driver sees it, over all jobs that it takes."""

    def __init__(
        self,
        ray: Any,
        monitor: Any,
        config: Config,
        record: RunRecord,
        line: LiveLine,
        wish: StopWish,
        guide: Guide | None = None,
        *,
        use_gpu: bool,
        wait_s: float,
    ) -> None:
        self._ray, self._monitor, self._config = ray, monitor, config
        self._record, self._line, self._wish = record, line, wish
        self._guide, self._use_gpu, self._wait_s = guide, use_gpu, wait_s
        self._hangs = HangWatch(ray, monitor, config.failure.hang_s)
        self._node = ray.get_runtime_context().get_node_id()
        self._earlier = dict(record.values)
        self._looked = 0.0
        self._room = ""
        self._told_of_store = self._stop_sent = False
        self.worker_seconds = 0.0
        """Seconds of work of all workers together."""
        self.stopped_as: Ending = "stopped"
        """The status of a run that ends because it was asked to."""
        self.moving = False
        """Whether the job ends because a node of its workers is about to go: another one is to take over."""

    @property
    def hang(self) -> str:
        """What was said of the last hang; empty if there was none."""
        return self._hangs.last

    def follow(self, job: Job) -> MonitorView:
        """Look at a job until it ends; its last view."""
        self.moving = False
        before = time.monotonic()
        while job.running(_POLL_S):
            view = self.look()
            now = time.monotonic()
            self.worker_seconds += (now - before) * len(view.beats)
            before = now
        view = self._view()
        self._heed_guide(view)
        self._line.show(view)
        return view

    def look(self) -> MonitorView:
        """One look: draw, record, and act on what is wrong."""
        view = self._view()
        self._heed_guide(view)
        if self._wish.asked and not self._stop_sent:  # also where a move has asked for a stop that is not for good
            self._stop_sent = True
            self._ray.get(self._monitor.ask_stop.remote())
        if time.monotonic() - self._looked > _CLUSTER_S:
            self._looked = time.monotonic()
            self._look_at_cluster(view)
        self._line.show(view, waiting=self._room)
        self._write(view)
        self._hangs.look(view.beats)
        return view

    def seen(self, view: MonitorView) -> dict[str, Any]:
        """What run.json says of this and all earlier starts: objects, groups of workers, warnings."""
        return {
            "complete": sorted({*self._record.values["complete"], *view.published}),
            "groups": [*self._earlier["groups"], *view.groups],
            "notes": [*self._earlier["notes"], *view.notes],
        }

    def _heed_guide(self, view: MonitorView) -> None:
        status = self._guide.look(view) if self._guide else None
        if status and not self._wish.asked:
            self.stopped_as, self._wish.asked = status, True

    def _write(self, view: MonitorView) -> None:
        try:
            self._record.beat(**self.seen(view))
        except (StoreRefusedError, StaleDriverError):
            raise
        except StoreError as error:  # the workers may reach it, or wait for it
            if not self._told_of_store:
                self._told_of_store = True
                self._note(f"run.json is not up to date: {error}")

    def _view(self) -> MonitorView:
        view: MonitorView = self._ray.get(self._monitor.read.remote())
        return view

    def _look_at_cluster(self, view: MonitorView) -> None:
        self._room = self._missing_room(view)
        if view.stopping:
            return
        going = draining_nodes()
        mine = {beat.node: beat.host for beat, _ in view.beats}
        if self._node in going:
            self._note(f"this command's own node is about to be taken away{_within(going[self._node])}: stopping")
            self._wish.asked = True
        elif mine.keys() & going.keys():
            hosts = ", ".join(sorted({mine[node] for node in mine.keys() & going.keys()}))
            left_s = min(going[node] for node in mine.keys() & going.keys())
            self._note(f"node {hosts} is about to be taken away{_within(left_s)}: moving behind a checkpoint")
            self.moving = True
            self._ray.get(self._monitor.ask_stop.remote(for_good=False))

    def _missing_room(self, view: MonitorView) -> str:
        """What the workers wait for, in words; empty where they do not."""
        if view.waiting_s is None or not view.short_of_room:
            return ""
        scale, free, all_ = self._config.scale, free_resources(self._ray), cluster_resources(self._ray)
        need = f"{scale.least * scale.cpus_per_worker:g} CPUs"
        have = f"{free['CPU']:g} free of {all_.cpus:g}"
        if self._use_gpu:
            need += f" and {scale.least} GPUs"
            have += f", and {free['GPU']:g} GPUs of {all_.gpus:g},"
        left_s = max(0.0, self._wait_s - view.waiting_s)
        return (
            f"waiting for {scale.least} worker(s): they need {need}, the cluster has {have} "
            f"on {all_.nodes} node(s); giving up in {left_s:.0f} s"
        )

    def _note(self, text: str) -> None:
        self._ray.get(self._monitor.note.remote(text))


def _within(seconds: float) -> str:
    return f" in {seconds:.0f} s" if 0 < seconds < float("inf") else ""
