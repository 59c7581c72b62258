"""The Ray Tune side of a search or a repetition: its tasks as Tune trials, and Tune's words handed to it.

Tune starts, watches and shows trials; what to run is the work's word, and what came of it lies in run folders.
A trial that is to end is told so by the board and ends by itself, behind a checkpoint and with its workers freed:
Tune's own way kills its process. Tune's folder is scratch.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from tune_spaces.board import EPOCH, FIGURE, TRIAL
from tune_spaces.task import Task, Work
from tune_spaces.trial import TrialOrder, run_trial

__all__ = ["TuneJob"]

# Nothing for a trial's process but a place on the head node, which stays: its workers take their own.
_TRIAL_RESOURCES = {"node:__internal_head__": 0.001}
_LOST = "lost_workers: the process that drove it ended (out of memory?)"


class TuneJob:
    """`Tuner.fit()` in a thread, so that the main thread can draw and hear signals.

    Args:
        ray: connected.
        board: the actor that trials ask.
        max_failures: new starts of a trial whose process was lost.
        command: what the user typed.
    """

    def __init__(self, ray: Any, work: Work, board: Any, *, max_failures: int, command: str) -> None:
        self._searcher = _Asker(ray, work, board, command)
        self._board, self._max_failures, self._work = board, max_failures, work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, name="ray-tune-fit", daemon=True)
        self._thread.start()

    def running(self, wait_s: float) -> bool:
        """Wait at most so long for the end; whether it goes on.

        Raises:
            Exception: what ended it, if that was not the work.
        """
        self._thread.join(wait_s)
        error = self._searcher.error or self._error
        if error:
            raise error
        return self._thread.is_alive()

    def _fit(self) -> None:
        # Curves are in the run folders, in the search's and on the terminal.
        os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_AIR_NEW_OUTPUT="0")
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        try:
            with tempfile.TemporaryDirectory(prefix="xdist-tune-", ignore_cleanup_errors=True) as scratch:
                self._build(scratch).fit()
        except BaseException as error:  # noqa: BLE001 - the thread's entry point; the main thread raises it
            self._error = error

    def _build(self, scratch: str) -> tune.Tuner:
        trainable = tune.with_resources(tune.with_parameters(run_trial, board=self._board), _TRIAL_RESOURCES)
        return tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=self._searcher,
                num_samples=-1,
                reuse_actors=True,  # the next trial finds its imports done
                trial_name_creator=lambda trial: trial.config[TRIAL],
                trial_dirname_creator=lambda trial: f"{trial.config[TRIAL]}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=self._work.folder.name,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=self._max_failures),
                callbacks=[_Silent()],
                verbose=0,
            ),
        )


class _Silent(TrialProgressCallback):  # type: ignore[misc]  # Ray has no types
    """Takes the place of Tune's own, which prints a line a trial however quiet it is told to be."""

    def _print(self, msg: str) -> None:
        pass


class _Asker(Searcher):  # type: ignore[misc]  # Ray has no types
    """Tune asks, the work answers. What an answer fails with is kept and ends the work: Tune would swallow it."""

    def __init__(self, ray: Any, work: Work, board: Any, command: str) -> None:
        super().__init__()
        self._ray, self._work, self._board, self._command = ray, work, board, command
        self._tasks: dict[str, Task] = {}
        self.error: BaseException | None = None
        """The first that an answer failed with."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config as Tune shows it; FINISHED at the end."""
        with self._kept():
            task = self._work.next()
            if task is not None:
                return self._start(trial_id, task)
        return None if self._tasks else Searcher.FINISHED

    def _start(self, trial_id: str, task: Task) -> dict[str, Any]:
        self._ray.get(self._board.give.remote(self._order(task)))
        if self._work.is_pruned(task.name):  # decided before the driver of that start was lost
            self._ray.get(self._board.end.remote(task.name, "pruned"))
        self._tasks[trial_id] = task
        return {TRIAL: task.name}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch's end."""
        if EPOCH not in result:
            return
        with self._kept():
            name = self._tasks[trial_id].name
            verdict = self._work.report(name, result[EPOCH], result.get(FIGURE))
            if verdict:
                self._ray.get(self._board.end.remote(name, verdict))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial's end, whatever it was."""
        with self._kept():
            name = self._tasks[trial_id].name
            reason = self._ray.get(self._board.take_reason.remote(name))
            self._work.end(name, reason or (_LOST if error else ""))
        self._tasks.pop(trial_id, None)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the entry from Tune's thread; the main thread raises it
            self.error = self.error or error
            self._work.stopping = True

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for the copy that Tune puts into its folder and nobody reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the work keeps its own."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the work keeps its own."""

    def _order(self, task: Task) -> TrialOrder:
        folder = self._work.folder
        return TrialOrder(
            name=task.name,
            config=task.config,
            place=folder.store.child(task.place).uri,
            parent=folder.name,
            command=self._command,
        )
