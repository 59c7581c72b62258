"""The driver's side of many trainings at once: the claim of their folder, the loop, signals, and an end in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from cluster.errors import InputError, RunFailedError, StoppedError, StoreError, StoreRefusedError, XdistError
from cluster.runs import RunFolder, StaleDriverError
from cluster.session import draining_nodes, start_here
from tune_spaces.board import Board
from tune_spaces.task import Work
from xdist_train.training.record import RunRecord
from xdist_train.training.watch import StopWish

__all__ = ["LOOK_S", "check_name", "claim", "ended_in_words", "run_tasks"]

LOOK_S = 0.5


def check_name(folder: RunFolder, resume: str, kind: str) -> None:
    """Pass if a start may have this folder, which holds nothing or an earlier start of the same kind.

    Args:
        resume: `run.resume`.
        kind: `search` or `repetition`.

    Raises:
        InputError: the name is taken, or there is nothing to go on with.
    """
    exists = folder.exists()
    if exists and resume == "never":
        raise InputError(
            f"run.name {folder.name!r} is taken: {folder.store.uri} holds a {kind}. Choose another name, "
            "or go on with it by run.resume=must."
        )
    if not exists and resume == "must":
        raise InputError(f"run.resume=must, but there is no {kind} in {folder.store.uri!r}.")


def claim(folder: RunFolder, resume: str) -> int:
    """Become the owner of a search or a repetition: the number of this start.

    Raises:
        InputError: another start was first.
    """
    number = folder.claim_new() if resume == "never" else folder.claim()
    if not number:
        raise InputError(f"run.name {folder.name!r} was taken by another start a moment ago. Choose another name.")
    return number


def run_tasks(
    ray: Any,
    work: Work,
    wish: StopWish,
    *,
    max_failures: int,
    command: str,
    say: Callable[[str], None],
    show: Callable[[Mapping[str, str]], None],
) -> None:
    """Run tasks until there are no more, or a stop is asked for: then `work.stopping` is set.

    Args:
        max_failures: new starts of a task whose process was lost.
        command: what the user typed.
        say: a line that stays.
        show: draw; gets where tasks at work stand, by name.
    """
    from tune_spaces.tuner import TuneJob

    board, told, sent = start_here(ray, Board), False, False
    here = ray.get_runtime_context().get_node_id()
    job = TuneJob(ray, work, board, max_failures=max_failures, command=command)
    try:
        while job.running(LOOK_S):
            wish.asked = wish.asked or here in draining_nodes()
            if wish.asked:
                work.stopping = True
            if work.stopping and not sent:
                sent = True
                ray.get(board.stop.remote())
                say(f"stopping: {work.trouble or 'what is at work ends behind a checkpoint'}")
            show(ray.get(board.texts.remote()))
            try:
                work.beat()
            except (StoreRefusedError, StaleDriverError):
                raise
            except StoreError as error:
                if not told:
                    say(f"warning: {work.folder.record} is not up to date: {error}")
                told = True
        show(ray.get(board.texts.remote()))
    except ray.exceptions.RayActorError as error:
        work.stopping = True
        work.trouble = f"its helper process was lost ({' '.join(str(error).split())[:200]})"


@contextmanager
def ended_in_words(record: RunRecord) -> Iterator[None]:
    """An error that ends the block is kept in the record, where it can be."""
    try:
        yield
    except (StoppedError, RunFailedError):
        raise
    except BaseException as error:
        status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(XdistError):
            record.end(status, reason=f"{type(error).__name__}: {error}")
        raise
