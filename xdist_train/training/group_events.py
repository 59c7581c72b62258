"""What Ray Train's controller does with the group of workers, told to the monitor; and an end to waiting.

The only file that knows the states of Ray Train's controller. Runs in the controller's process.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    SchedulingState,
    TrainControllerState,
)

from xdist_train.training.job import words_of
from xdist_train.training.messages import STOPPED, Failure

__all__ = ["GroupEvents"]

_WAITING = (InitializingState, ReschedulingState, RestartingState, SchedulingState)
_PAUSE_S = 0.5


class GroupEvents(ControllerCallback):  # type: ignore[misc]
    """Says when workers were lost and why, and gives up when there was no room for others for `wait_s` seconds."""

    def __init__(self, monitor: Any, wait_s: float, num_workers: int) -> None:
        self._monitor, self._wait_s, self._num_workers = monitor, wait_s, num_workers
        self._since: float | None = None

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Ray calls it at each turn of the controller, also when the state stays."""
        stays = type(current_state) is type(previous_state)
        if isinstance(current_state, RestartingState) and not stays:
            words = words_of(current_state.training_failed_error)
            self._monitor.lose.remote(f"workers lost: {words}; going on from the last checkpoint")
        if isinstance(current_state, ResizingState) and not stays:
            self._monitor.lose.remote(
                "the cluster has room for another number of workers: going on with them from the last checkpoint"
            )
        if not isinstance(current_state, _WAITING):
            self._since = None
            return
        self._since = self._since or time.monotonic()
        if stays or isinstance(current_state, ReschedulingState):
            self._monitor.want_room.remote()
        if stays:
            time.sleep(_PAUSE_S)  # Ray itself goes round without a pause
        if ray.get(self._monitor.ending.remote()):
            ray.get(self._monitor.fail.remote(Failure(kind=STOPPED, message="stopped while there were no workers")))
            raise InterruptedError("stopped while there were no workers")
        if time.monotonic() - self._since > self._wait_s:
            self._give_up(getattr(current_state, "training_failed_error", None))

    def _give_up(self, error: BaseException | None) -> None:
        cause = getattr(error, "controller_failure", None)
        if cause is None or isinstance(cause, WorkerGroupStartupTimeoutError):
            what = "there was no room for"
        else:
            what = f"there was no start ({words_of(cause)}) of"
        message = (
            f"{what} {self._num_workers} worker(s) for {self._wait_s:.0f} s (scale.wait_s). Add nodes, "
            "use fewer workers or wait longer; the same command with run.resume=must goes on from the last checkpoint."
        )
        ray.get(self._monitor.fail.remote(Failure(kind="no_room", message=message)))
        raise TimeoutError(message)
