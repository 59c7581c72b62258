"""Who is to blame for a standstill, when it is one, and what a rank tells of itself."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from xdist_train.training.hang import describe_hang, find_hang
from xdist_train.training.messages import Beat
from xdist_train.training.pulse import COMPUTING, MEETING, START_SLACK_S, STARTING, WAITING, Pulse

_WELL = Beat(
    rank=0, host="h", node="n", pid=7, group=1, phase=COMPUTING, epoch=1, step=5, idle_s=0.1, slack_s=0.0, stack="frame"
)
_STILL = replace(_WELL, idle_s=21.0)


def _ranks(*beats: Beat, ages: tuple[float, ...] = ()) -> list[tuple[Beat, float]]:
    return [(replace(beat, rank=rank), age) for (rank, beat), age in zip(enumerate(beats), ages or (0,) * 9)]  # noqa: B905


@pytest.mark.parametrize(
    ("beats", "blamed"),
    [
        ([], []),
        (_ranks(_WELL, _WELL), []),
        (_ranks(_WELL, _STILL), []),  # while one goes on, the other may wait for it
        (_ranks(_STILL, _STILL), [0, 1]),  # at the same place: nobody can tell
        (_ranks(_STILL, replace(_STILL, phase=MEETING)), [0]),
        (_ranks(_STILL, replace(_STILL, phase=WAITING)), [1]),
        (_ranks(replace(_STILL, phase=MEETING), replace(_STILL, step=4)), [1]),
        (_ranks(replace(_STILL, phase=WAITING), _WELL, ages=(0, 21)), [1]),  # silence before all else
        (_ranks(_WELL, _WELL, ages=(0, 21)), []),
        (_ranks(_STILL, replace(_STILL, slack_s=120.0, phase=STARTING)), []),
        (_ranks(replace(_WELL, idle_s=15.0), _WELL, ages=(0, 15)), []),
    ],
)
def test_the_one_to_blame(beats: list[tuple[Beat, float]], blamed: list[int]) -> None:
    """Silent ranks, else those that wait for data, else those furthest behind; nobody while one goes on."""
    assert blamed == [beat.rank for beat in find_hang(beats, 20.0)]


def test_the_paragraph_says_where_and_what_was_done() -> None:
    """Seconds, rank, host, process, position, the others, and the stack."""
    beats = _ranks(replace(_STILL, phase=WAITING), replace(_STILL, phase=MEETING))
    text = describe_hang(beats, find_hang(beats, 20.0), [], {0: "frame"}, {"was ended"})
    expected = (
        "no progress for 21 s (failure.hang_s): rank 0 on h (pid 7) is waiting for data at epoch 2, step 5. "
        "Of the others, rank 1 is meeting the other ranks at epoch 2, step 5. The process was ended; "
        "the run goes on from its last checkpoint.\nstack of rank 0:\nframe"
    )
    assert expected == text


def test_a_pulse_tells_where_its_thread_stands() -> None:
    """Phase and position as marked; the stack once it stands still; slack for a start and a first step alone."""
    pulse = Pulse()
    pulse.group = 2
    assert pulse.beat(1, "n", 60).group == 2
    assert (STARTING, START_SLACK_S) == (pulse.beat(1, "n", 60).phase, pulse.beat(1, "n", 60).slack_s)
    pulse.mark(COMPUTING)
    assert pulse.beat(1, "n", 60).slack_s == START_SLACK_S
    pulse.end_step()
    pulse.at(2, 3)
    assert [1, 2] == list(pulse.watch([1, 2]))
    beat = pulse.beat(1, "n", 60)
    assert (MEETING, 2, 3, 0.0, "") == (beat.phase, beat.epoch, beat.step, beat.slack_s, beat.stack)
    assert "test_a_pulse_tells_where_its_thread_stands" in pulse.beat(1, "n", 0).stack


def test_beats_are_told_from_another_thread() -> None:
    """They come while the thread itself does nothing, and none after the block."""
    told: list[Beat] = []
    with Pulse().told(told.append, 3, "n", hang_s=0.4):
        time.sleep(0.3)
    count = len(told)
    assert count >= 3
    assert {3} == {beat.rank for beat in told}
    assert told[-1].idle_s > 0.2
    time.sleep(0.15)
    assert count == len(told)
