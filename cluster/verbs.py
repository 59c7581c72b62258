"""The cluster's commands: submit, status, logs, stop, doctor. Imports nothing heavy at the top."""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.jobs import Jobs

__all__ = ["doctor", "logs", "status", "stop", "submit"]

_VERBS = "xdist_train.verbs"
_Address = Annotated[
    str,
    typer.Option(
        "--address",
        help="The cluster's dashboard, e.g. http://127.0.0.1:8265; by default $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, "
        "or the cluster of this machine.",
    ),
]
_JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `submit` and `status` print it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- VERB ...", help="A command, as it would be typed here.")],
    address: _Address = "",
    gpus: Annotated[
        float,
        typer.Option(min=0, help="GPUs for the command's own process (evaluate, predict); workers ask for their own."),
    ] = 0,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end; print the job's id.")] = False,
) -> None:
    """Run a command as a job on a Ray cluster, and follow it to its end; the exit code is the command's.

    Recipes and spaces that are files go along, and this program where the cluster has another version of it; nothing
    else does: data and results lie where the cluster reaches them. Ctrl-C asks whether the job is to stop.

    Example: xdist-train submit --address http://127.0.0.1:8265 -- train oct data.uri=s3://b/oct storage.uri=s3://b/runs
    """
    _check_verb(command[0])
    jobs, console = _open(address)
    with console.status("submitting ..."):
        job_id = jobs.submit(command, gpus=gpus)
    if detach:
        typer.echo(job_id)
        return
    console.print(f"job: {job_id}", highlight=False, markup=False, soft_wrap=True)
    _follow(jobs, job_id, console)


def status(
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="One job's id; by default all of the cluster.")] = "",
    address: _Address = "",
    as_json: _Json = False,
) -> None:
    """How a job stands, or all jobs of a cluster.

    Example: xdist-train status --address http://127.0.0.1:8265
    """
    jobs, console = _open(address)
    found = [jobs.find(job)] if job else jobs.list()
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        return
    if not found:
        typer.echo(f"{jobs.url}: no jobs.")
        return
    from cluster.job_table import job_table
    from cluster.terminal import printable

    console.print(job_table(found))
    if job:
        told = f"command: {found[0].command}\n{found[0].message}".rstrip()
        console.print(printable(told), highlight=False, markup=False, soft_wrap=True)


def logs(
    job: _JobId,
    address: _Address = "",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for the job's end.")] = True,
) -> None:
    """What a job says, to its end; the exit code is the job's.

    Example: xdist-train logs train-20261126-101500-1a2b
    """
    from cluster.terminal import drawn_text, printable

    jobs, console = _open(address)
    if follow:
        _follow(jobs, job, console)
        return
    for line in jobs.log(job).split("\n"):  # what is drawn begins with a sign that splitlines() takes for an end
        if drawn_text(line) is None:
            typer.echo(printable(line))


def stop(job: _JobId, address: _Address = "") -> None:
    """Ask a job to stop behind a checkpoint, and wait until it has.

    Example: xdist-train stop train-20261126-101500-1a2b
    """
    from cluster.jobs import STOP_WAIT_S

    jobs, console = _open(address)
    if not jobs.stop(job):
        typer.echo(f"{job} had ended before: {jobs.find(job).status.lower()}.")
        return
    console.print(_stopping(job), highlight=False, markup=False, soft_wrap=True)
    with console.status("waiting for its end ..."):
        ended = jobs.wait(job, 1.5 * STOP_WAIT_S)
    typer.echo(f"{job}: {ended.status.lower()}.")


def doctor(
    address: Annotated[
        str,
        typer.Option("--address", help="The dashboard of a cluster to look at; by default the one of this machine."),
    ] = "",
    data: Annotated[str, typer.Option(help="Packed dataset: can every node read it, and will it fit?")] = "",
    storage: Annotated[str, typer.Option(help="Where runs go: may every node list, put, get and delete there?")] = "",
    cache_dir: Annotated[str, typer.Option(help="loader.cache_dir of the runs to come.")] = "",
    cache_limit_gib: Annotated[float, typer.Option(min=0, help="loader.cache_limit_gib of the runs to come.")] = 0,
    as_json: _Json = False,
) -> None:
    """What is wrong with this machine or a cluster before a run begins, and what to do; exit code 1 if anything is.

    Looks at versions, token, shared memory, clocks, decoders and the network between nodes, and at storage and data
    where they are named.

    Example: xdist-train doctor --data s3://b/oct --storage s3://b/runs
    """
    from rich.console import Console

    from cluster.doctor import Places
    from cluster.examination import examine_here, examine_there, findings_table

    places = Places(data_uri=data, storage_uri=storage, cache_dir=cache_dir, cache_limit_gib=cache_limit_gib)
    console = Console(stderr=as_json)
    found = examine_there(address, places, console) if address else examine_here(places, console)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        console.print(findings_table(found))
    raise typer.Exit(0 if all(finding.ok for finding in found) else 1)


def _open(address: str) -> tuple[Jobs, Console]:
    from rich.console import Console

    from cluster.jobs import open_jobs

    jobs = open_jobs(address)
    if jobs.warning:
        typer.echo(f"warning: {jobs.warning}", err=True)
    return jobs, Console()


def _check_verb(verb: str) -> None:
    verbs = sorted(point.name for point in entry_points(group=_VERBS))
    if verb not in verbs:
        near = difflib.get_close_matches(verb, verbs, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Commands are: {', '.join(verbs)}."
        raise InputError(f"there is no command {verb!r} to submit. {hint}")


def _follow(jobs: Jobs, job_id: str, console: Console) -> None:
    """To the job's end, and out with its exit code; or, after Ctrl-C, out while it goes on."""
    from cluster.follow import follow

    def interrupted() -> bool:
        if not _confirms("\nStop the job too? (It ends behind a checkpoint and can be resumed.)"):
            return False
        jobs.stop(job_id)
        console.print(_stopping(job_id), highlight=False, markup=False, soft_wrap=True)
        return True

    try:
        ended = follow(jobs, job_id, console, interrupted=interrupted)
    except KeyboardInterrupt:
        typer.echo(f"\n{job_id} goes on. `xdist-train logs {job_id}` follows it, `xdist-train stop {job_id}` ends it.")
        return
    if ended.exit_code is None and ended.status == "FAILED":
        typer.echo(f"xdist-train: job {job_id} failed: {ended.message}", err=True)
    raise typer.Exit(ended.outcome)


def _confirms(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return typer.confirm(question, default=False)
    except typer.Abort:
        return False


def _stopping(job_id: str) -> str:
    from cluster.jobs import STOP_WAIT_S

    return f"{job_id} is asked to stop; it has {STOP_WAIT_S} s to leave a checkpoint."
