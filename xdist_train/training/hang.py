"""Ranks that stand still: who is to blame, what they were doing, and their end, so that the run can go on.

When one rank hangs the others soon wait for it, and all stand still alike; that alone is a standstill. The one to
blame is the one that sends no signs of life; else the one that waits for data; else the one furthest behind.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from cluster.processes import ENDED, GONE, end_process, stack_of
from cluster.session import on_nodes
from xdist_train.training.messages import Beat
from xdist_train.training.pulse import MEETING, WAITING, beat_interval

__all__ = ["HangWatch", "describe_hang", "find_hang"]

Beats = Sequence[tuple[Beat, float]]
"""The last beat of each rank, and how many seconds ago it came."""

_WORKER_TITLE = "ray::RayTrainWorker"
_NODE_S = 30.0
_SHOWN_RANKS = 8


class HangWatch:
    """Looks at the beats for the driver, and ends what hangs."""

    def __init__(self, ray: Any, monitor: Any, hang_s: float) -> None:
        self._ray, self._monitor, self._hang_s = ray, monitor, hang_s
        self._quiet_until = 0.0
        self.last = ""
        """What was said of the last hang."""

    def look(self, beats: Beats) -> None:
        """End the ranks that hang, if any, and tell the user."""
        culprits = find_hang(beats, self._hang_s)
        if not culprits or time.monotonic() < self._quiet_until:
            return
        silent = [beat for beat in culprits if beat in _silent(beats, self._hang_s)]
        # Where all wait for each other, who is to blame is a guess: what each does may tell.
        guessed = all(beat.phase == MEETING for beat in culprits)
        stacks = self._stacks([beat for beat, _ in beats] if guessed else culprits, silent)
        ends = {beat.node: partial(_end_all, [b.pid for b in culprits if b.node == beat.node]) for beat in culprits}
        done = set(on_nodes(self._ray, ends, _NODE_S).values())
        if done <= {ENDED, GONE}:
            self._ray.get(self._monitor.lose.remote())
        self._quiet_until = time.monotonic() + self._hang_s
        self.last = describe_hang(beats, culprits, [beat.rank for beat in silent], stacks, done)
        self._ray.get(self._monitor.note.remote(self.last))

    def _stacks(self, shown: Sequence[Beat], silent: Sequence[Beat]) -> dict[int, str]:
        """What each said itself, or what is seen from outside of one that is silent on its node."""
        asked = {beat.node: beat for beat in silent if not beat.stack}
        seen = on_nodes(self._ray, {node: partial(stack_of, beat.pid) for node, beat in asked.items()}, _NODE_S)
        told = {beat.rank: beat.stack for beat in shown if beat.stack}
        told |= {beat.rank: seen[node] for node, beat in asked.items()}
        return dict(sorted(told.items())[:_SHOWN_RANKS])


def _end_all(pids: Sequence[int]) -> str:
    ends = {end_process(pid, _WORKER_TITLE) for pid in pids}
    return next((end for end in sorted(ends) if end not in (ENDED, GONE)), min(ends))


def find_hang(beats: Beats, hang_s: float) -> tuple[Beat, ...]:
    """The ranks to blame for a standstill of more than `hang_s` seconds, by rank; empty while all is well.

    While one rank goes on, the others may have to wait for it.
    """
    slack_s = max((beat.slack_s for beat, _ in beats), default=0.0)
    if min((beat.idle_s + age_s for beat, age_s in beats), default=0.0) <= hang_s + slack_s:
        return ()
    ranks = sorted((beat for beat, _ in beats), key=lambda beat: beat.rank)
    waiting = [beat for beat in ranks if beat.phase == WAITING]
    least = min((beat.epoch, beat.step) for beat in ranks)
    behind = [beat for beat in ranks if (beat.epoch, beat.step) == least]
    busy = [beat for beat in behind if beat.phase != MEETING]
    return tuple(_silent(beats, hang_s) or waiting or busy or behind)


def _silent(beats: Beats, hang_s: float) -> list[Beat]:
    limit_s = 3 * beat_interval(hang_s)
    return sorted((beat for beat, age_s in beats if age_s > limit_s), key=lambda beat: beat.rank)


def describe_hang(
    beats: Beats, culprits: Sequence[Beat], silent: Sequence[int], stacks: dict[int, str], done: set[str]
) -> str:
    """The paragraph for the user, with the stacks."""
    stood_s = min(beat.idle_s + age_s for beat, age_s in beats)
    blamed = "; ".join(_where(beat, beat.rank in silent) for beat in culprits[:_SHOWN_RANKS])
    others = [beat for beat, _ in beats if beat.rank not in {beat.rank for beat in culprits}]
    doing = ", ".join(f"rank {beat.rank} is {beat.phase} {_position(beat)}" for beat in others[:_SHOWN_RANKS])
    rest = f" Of the others, {doing}." if others else ""
    if done <= {ENDED, GONE}:
        what = f"The process {', '.join(sorted(done))}; the run goes on from its last checkpoint."
    else:
        what = f"It could not be ended ({', '.join(sorted(done))}); if its node is lost, Ray will notice."
    text = f"no progress for {stood_s:.0f} s (failure.hang_s): {blamed}.{rest} {what}"
    return "\n".join([text, *(f"stack of rank {rank}:\n{stack}" for rank, stack in stacks.items())])


def _where(beat: Beat, silent: bool) -> str:
    doing = f"gives no sign of life since it was {beat.phase}" if silent else f"is {beat.phase}"
    return f"rank {beat.rank} on {beat.host} (pid {beat.pid}) {doing} {_position(beat)}"


def _position(beat: Beat) -> str:
    return f"at epoch {beat.epoch + 1}, step {beat.step}"
