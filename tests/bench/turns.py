"""Trainings that live side by side and take turns, some steps each, so that both meet the same machine.

The bench gives turns and collects what was used; a training asks before each step whether it may go on. CPU time is
of the whole process, all its threads. A turn's end waits until batches in the making are made, so each turn pays for
as many batches as it has steps. They meet in a folder: no library is needed in between.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["SETTLE_S", "STEPS", "WARM_UP", "Turn", "TurnTaker", "Turns", "num_steps"]

WARM_UP = 10
STEPS = 8  # a second or two: the machine is the same for all of a round
SETTLE_S = 0.1  # two batches take a tenth of it
_LOOK_S = 0.01


def num_steps(turns: int) -> int:
    """Steps of a training of so many turns; the last one is nobody's."""
    return WARM_UP + turns * STEPS + 1


@dataclass(frozen=True)
class Turn:
    """What one process used in its turn."""

    pid: int
    cpu_s: float
    wall_s: float


class TurnTaker:
    """In a training process, asked before each step."""

    def __init__(self, folder: Path, name: str, rank: int) -> None:
        self._folder, self._name, self._rank = folder, name, rank
        self._step = 0
        self._cpu_s = self._started = 0.0

    def before_step(self) -> None:
        """Returns when it is this training's turn."""
        place, self._step = self._step - WARM_UP, self._step + 1
        if place < 0 or place % STEPS:
            return
        turn = place // STEPS
        if turn:
            self._end(turn - 1)
        else:
            _put(self._folder / f"{self._name}-{self._rank}.ready", "")
        while not any((self._folder / f"{self._name}{which}.go").exists() for which in (f"-{turn}", "")):
            time.sleep(_LOOK_S)
        self._cpu_s, self._started = time.process_time(), time.perf_counter()

    def _end(self, turn: int) -> None:
        wall_s = time.perf_counter() - self._started
        time.sleep(SETTLE_S)
        used = Turn(os.getpid(), time.process_time() - self._cpu_s, wall_s)
        _put(self._folder / f"{self._name}-{turn}-{self._rank}.json", json.dumps(asdict(used)))


class Turns:
    """In the bench."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self._folder, self._name, self._size = folder, name, size
        self._given = 0

    def wait(self, alive: Callable[[], bool]) -> None:
        """Until all ranks have warmed up: a start beside it would spoil another's turn.

        Raises:
            RuntimeError: the training ended instead.
        """
        self._wait_for([self._folder / f"{self._name}-{rank}.ready" for rank in range(self._size)], alive)

    def give(self, alive: Callable[[], bool]) -> list[Turn]:
        """One turn, from its beginning to its end; what each rank used.

        Raises:
            RuntimeError: the training ended instead.
        """
        turn, self._given = self._given, self._given + 1
        _put(self._folder / f"{self._name}-{turn}.go", "")
        paths = [self._folder / f"{self._name}-{turn}-{rank}.json" for rank in range(self._size)]
        self._wait_for(paths, alive)
        return [Turn(**json.loads(path.read_text())) for path in paths]

    def let_go(self) -> None:
        """No more turns: the training goes on to its end."""
        _put(self._folder / f"{self._name}.go", "")

    def _wait_for(self, paths: list[Path], alive: Callable[[], bool]) -> None:
        while not all(path.exists() for path in paths):
            if not alive():
                raise RuntimeError(f"{self._name}: the training ended before {paths[0].name} was there")
            time.sleep(_LOOK_S)


def _put(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)
