"""A job's log on this terminal until the job ends: lines that stay, lines that are drawn over, connections that break.

The log comes over a web socket; what ends the wait is the job's status and never the end of the stream, which also
breaks when a proxy or a tunnel does. Knows no job but by `cluster/jobs.py`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console
from rich.text import Text

from cluster.errors import XdistError
from cluster.jobs import ClusterAwayError, Job, Jobs
from cluster.terminal import LiveArea, drawn_text, live_area, printable

__all__ = ["follow"]

_LOOK_S = 1.0
_HEARTBEAT_S = 15.0
_AGAIN_S = 2.0
LOST_S = 600.0
"""How long a cluster may not answer before this side gives up; the job goes on."""


def follow(jobs: Jobs, job_id: str, console: Console, *, interrupted: Callable[[], bool]) -> Job:
    """Show what a job says until it has ended.

    Args:
        interrupted: called at Ctrl-C; whether to go on following.

    Raises:
        XdistError: the cluster did not answer for ten minutes.
        KeyboardInterrupt: the user's; the job goes on.
    """
    with live_area(console, f"{job_id}: waiting for its first words ...") as area, _Stream(jobs, job_id) as stream:
        printer = _Printer(console, area)
        wait = _Wait(jobs, job_id, printer)
        while (job := wait.job) is None or not job.has_ended:
            try:
                wait.once(stream.pieces)
            except KeyboardInterrupt:
                with area.paused():
                    if not interrupted():
                        raise
        printer.catch_up(jobs, job_id)
    return job


class _Wait:
    """The wait for a job's end, over answers that do not come."""

    def __init__(self, jobs: Jobs, job_id: str, printer: _Printer) -> None:
        self._jobs, self._job_id, self._printer = jobs, job_id, printer
        self._looked, self._heard, self._told = -_LOOK_S, time.monotonic(), False
        self.job: Job | None = None

    def once(self, pieces: queue.Queue[str]) -> None:
        """A piece of the log, if one comes soon, and a look at the job, if the last was a while ago."""
        with suppress(queue.Empty):
            self._printer.say(pieces.get(timeout=_LOOK_S))
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        try:
            self.job = self._jobs.find(self._job_id)
        except ClusterAwayError as error:
            self._is_away(error)
            return
        self._heard = time.monotonic()
        if self._told:
            self._printer.warn("connected again")
        self._told = False

    def _is_away(self, error: ClusterAwayError) -> None:
        if time.monotonic() - self._heard > LOST_S:
            raise XdistError(
                f"{error}. It has not answered for {LOST_S:.0f} s; the job may go on. "
                f"`xdist-train logs {self._job_id}` follows it when the cluster answers again."
            ) from error
        if not self._told:
            self._printer.warn(f"{error}; the job goes on, trying again for {LOST_S:.0f} s")
        self._told = True


class _Printer:
    """Whole lines of a log onto a console."""

    def __init__(self, console: Console, area: LiveArea) -> None:
        self._console, self._area = console, area
        self._rest = ""
        self.num_chars = 0
        """Characters of the log that were taken."""

    def say(self, text: str) -> None:
        """The next piece of the log."""
        self.num_chars += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        self._show(lines)

    def catch_up(self, jobs: Jobs, job_id: str) -> None:
        """What an ended job said after the stream had ended; the last line may have no end."""
        try:
            self.say(jobs.log(job_id)[self.num_chars :])
        except ClusterAwayError as error:
            self.warn(f"{error}; the job has ended, its last lines may be missing here")
        self._show([self._rest] if self._rest else [])
        self._rest = ""

    def _show(self, lines: list[str]) -> None:
        drawn = [text for line in lines if (text := drawn_text(line)) is not None]
        stay = [printable(line.expandtabs()) for line in lines if drawn_text(line) is None]
        if drawn:
            self._area.draw(Text(printable(drawn[-1]), overflow="ellipsis", no_wrap=True))
        if stay:
            self._console.print("\n".join(stay), highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A word of this side's."""
        self._console.print(f"warning: {printable(text)}", highlight=False, markup=False, soft_wrap=True)


class _Stream:
    """The pieces of a log as they come, each once, over as many connections as it takes; in a thread of its own."""

    def __init__(self, jobs: Jobs, job_id: str) -> None:
        scheme, _, place = jobs.url.partition("://")
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{place}/api/jobs/{job_id}/logs/tail"
        self._jobs, self._job_id = jobs, job_id
        self.pieces: queue.Queue[str] = queue.Queue()
        self._num_chars = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job-log", daemon=True)

    def __enter__(self) -> _Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        asyncio.run(self._read_on())

    async def _read_on(self) -> None:
        import aiohttp

        while not self._ended.is_set():
            try:
                await self._read()
            except (aiohttp.ClientError, OSError, TimeoutError):  # a proxy may not know web sockets
                with suppress(XdistError):
                    self._take(await asyncio.to_thread(self._jobs.log, self._job_id), 0)
            await asyncio.sleep(_AGAIN_S)

    async def _read(self) -> None:
        """One connection, which tells the log from its beginning."""
        import aiohttp

        told = 0
        async with (
            aiohttp.ClientSession(headers=self._jobs.headers, trust_env=True) as session,
            # A peer that went away without a word does not answer the heartbeat.
            session.ws_connect(self._url, heartbeat=_HEARTBEAT_S) as socket,
        ):
            async for message in socket:
                if self._ended.is_set() or message.type is not aiohttp.WSMsgType.TEXT:
                    return
                self._take(message.data, told)
                told += len(message.data)

    def _take(self, text: str, start: int) -> None:
        """The part of a stretch of the log that is new."""
        new = text[max(0, self._num_chars - start) :]
        self._num_chars += len(new)
        if new:
            self.pieces.put(new)
