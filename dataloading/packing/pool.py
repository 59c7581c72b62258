"""One function over many chunks of work on all cores, results in order, few of them held at once.

Owns the processes of packing, of the phantom and of reading for prediction. Knows nothing of images.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from cluster.errors import RunFailedError

__all__ = ["map_in_order", "usable_cores"]

Work = TypeVar("Work")
Result = TypeVar("Result")

_CHUNKS_AHEAD = 4  # for each worker, so that one large picture does not stop the others


def map_in_order(function: Callable[[Work], Result], chunks: Iterable[Work], workers: int) -> Iterator[Result]:
    """Results of a top-level function, in the order of the chunks. Spawned: forking a process with threads can hang.

    Raises:
        RunFailedError: a worker was killed.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    queue = iter(chunks)
    running: deque[Future[Result]] = deque()
    try:
        with _interrupt_ignored():  # inherited by the processes that start here
            running.extend(pool.submit(function, chunk) for chunk in islice(queue, workers * _CHUNKS_AHEAD))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(function, chunk) for chunk in islice(queue, 1))
            yield result
    except BrokenProcessPool as error:
        raise RunFailedError(
            "worker_killed",
            f"One of {workers} worker processes was killed, most likely because memory ran out; nothing was left. "
            "Run it again where there is more memory, or with fewer workers (`pack`: pack.workers, pack.max_pixels).",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Cores this process may run on, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _interrupt_ignored() -> Iterator[None]:
    """The parent alone answers Ctrl-C: a process keeps what its parent ignored when it started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare_worker() -> None:
    """No worker outlives the parent."""
    import cv2

    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)  # one process a core already


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a spawned worker has a parent to follow"
    parent.join()
    os._exit(1)
