"""What the user hears of the group of workers, and when waiting for room ends."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    RunningState,
)

from cluster.errors import StoreError
from xdist_train.training.group_events import GroupEvents
from xdist_train.training.job import words_of
from xdist_train.training.messages import STOPPED
from xdist_train.training.monitor import RunMonitor

_DEAD = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
_LOST = WorkerGroupError("text", {1: _DEAD, 0: RuntimeError("Connection closed by peer")})


class _Handle:
    """A monitor in this process, called as Ray calls an actor."""

    def __init__(self) -> None:
        self.monitor = RunMonitor()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.monitor, name)
        return type("Method", (), {"remote": staticmethod(method)})


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> _Handle:
    monkeypatch.setattr(ray, "get", lambda value: value)
    return _Handle()


def test_a_lost_group_is_said_once(handle: _Handle) -> None:
    """The rank whose process ended, and not the one that misses it; until a group begins, the run waits."""
    handle.monitor.begin()
    events = GroupEvents(handle, wait_s=60, num_workers=2)
    restarting = RestartingState(training_failed_error=_LOST)
    events.after_controller_state_update(RunningState(), restarting)
    events.after_controller_state_update(restarting, restarting)
    view = handle.monitor.read()
    expected = "workers lost: the process of worker 1 ended, or its node did; going on from the last checkpoint"
    assert (expected,) == view.notes
    assert view.waiting_s is not None
    handle.monitor.begin()
    assert handle.monitor.read().waiting_s is None


def test_waiting_for_room_ends(handle: _Handle) -> None:
    """After scale.wait_s without room the run fails, with what to do; a group that runs starts the clock anew."""
    events = GroupEvents(handle, wait_s=0.1, num_workers=3)
    waiting = ReschedulingState(training_failed_error=_LOST)
    events.after_controller_state_update(InitializingState(), waiting)
    assert handle.monitor.read().short_of_room
    time.sleep(0.15)
    events.after_controller_state_update(waiting, RunningState())
    events.after_controller_state_update(RunningState(), waiting)
    assert handle.monitor.failure() is None
    time.sleep(0.15)
    with pytest.raises(TimeoutError):
        events.after_controller_state_update(waiting, waiting)
    failure = handle.monitor.failure()
    assert failure is not None
    assert "no room for 3 worker(s) for 0 s (scale.wait_s)" in failure.message


def test_a_wish_to_stop_is_heard_while_there_are_no_workers(handle: _Handle) -> None:
    """No failure of the run: the last checkpoint is as it was."""
    events = GroupEvents(handle, wait_s=60, num_workers=2)
    handle.monitor.ask_stop()
    with pytest.raises(InterruptedError):
        events.after_controller_state_update(InitializingState(), InitializingState())
    failure = handle.monitor.failure()
    assert failure is not None
    assert failure.kind == STOPPED


def test_a_start_that_fails_is_not_called_a_lack_of_room(handle: _Handle) -> None:
    """What Ray says of it is in the message."""
    events = GroupEvents(handle, wait_s=0.05, num_workers=2)
    broken = ReschedulingState(training_failed_error=ControllerError(WorkerGroupStartupFailedError("no torch")))
    events.after_controller_state_update(InitializingState(), broken)
    time.sleep(0.1)
    with pytest.raises(TimeoutError, match=r"there was no start \(no torch\) of 2 worker"):
        events.after_controller_state_update(InitializingState(), broken)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_LOST, "the process of worker 1 ended, or its node did"),
        (WorkerGroupError("t", {2: UserExceptionWithTraceback(StoreError("s3://b: away"), "trace")}), "worker 2: s3"),
        (ControllerError(StoreError("s3://b: away")), "s3://b: away"),
        (
            WorkerGroupError("t", {0: RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")}),
            "worker 0 lost the connection to another",
        ),
        (ValueError(), "ValueError"),
    ],
)
def test_words_without_traces(error: BaseException, words: str) -> None:
    """Who and what, on one line."""
    assert words_of(error).startswith(words)
    assert "\n" not in words_of(error)
