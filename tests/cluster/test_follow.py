"""What a follower shows and answers when the cluster goes at a bad moment; the rest runs on Ray in end_to_end."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from cluster.follow import follow
from cluster.jobs import ClusterAwayError, Job

_ENDED = Job(id="job", status="FAILED", command="", started=1.0, ended=2.0, exit_code=75, message="")


def _followed(**answers: Any) -> tuple[Job, str]:
    jobs = SimpleNamespace(url="http://127.0.0.1:9", headers={}, find=lambda _: _ENDED, **answers)
    console = Console(file=io.StringIO(), width=200)
    return follow(jobs, "job", console, interrupted=lambda: False), console.file.getvalue()  # type: ignore[arg-type,attr-defined]


def test_the_end_of_a_log_is_shown_without_a_stream() -> None:
    """All that the job said, its last line without an end too."""
    job, said = _followed(log=lambda _: "epoch 1\nthe last word")
    assert (75, "epoch 1\nthe last word\n") == (job.exit_code, said)


def test_a_head_that_goes_with_the_last_lines_leaves_the_jobs_answer() -> None:
    """The exit code is the job's, and that lines may be missing is said."""

    def away(_: str) -> str:
        raise ClusterAwayError("no answer")

    job, said = _followed(log=away)
    assert 75 == job.exit_code
    assert "its last lines may be missing" in said
