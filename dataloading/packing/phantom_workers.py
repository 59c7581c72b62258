"""Work spread over processes that die with their parent and leave Ctrl-C to it.

Owns the pool. It knows nothing of what the work is, nor of images.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from cluster.errors import RunFailedError

__all__ = ["map_unordered"]

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AHEAD = 8  # tasks queued for each worker: enough to keep it busy, few enough to stop soon


def map_unordered(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Results of `function` over `tasks` by `workers` processes, in the order in which they are done.

    The processes are spawned, because a fork of a process that has threads can hang; `function` must pickle.
    What `function` raises is raised here, and the tasks not yet begun are dropped.

    Raises:
        RunFailedError: a process was killed.
    """
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker)
    queue = iter(tasks)
    try:
        running = {pool.submit(function, task) for task in islice(queue, workers * TASKS_AHEAD)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(function, task) for task in islice(queue, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise RunFailedError(
            "worker_killed",
            f"One of {workers} worker processes was killed, most likely because memory ran out; "
            "nothing that looks finished was left. Run it again with fewer workers.",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)  # one process a core already


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker has a parent to follow"
    parent.join()
    os._exit(1)
