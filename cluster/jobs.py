"""Commands as jobs on a Ray cluster: submitted, looked at, stopped. The only file that knows Ray's job API.

A job is one command, run by the head; Ray does not retry it. What follows a job's log is `cluster/follow.py`.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.access import TOKEN_HELP, is_loopback, require_token, take_token
from cluster.errors import InputError, XdistError
from cluster.package import build_wheel, code_digest, code_revision
from cluster.parcel import pack_files
from cluster.terminal import FOLLOWED

__all__ = ["STOP_WAIT_S", "ClusterAwayError", "Job", "Jobs", "open_jobs"]

STOP_WAIT_S = 600
"""How long a job may take to end behind a checkpoint when it is asked to stop; then Ray kills it."""
_ANSWER_S = 20.0
_PROBE_S = 60.0
_POLL_S = 0.3
_PYTHON = ("python", "-P")  # what lies in the folder of the head is not imported
_PROGRAM = "xdist_train"
_PROBE_ID = "xdist-probe-"
_PROBE = "import ray; from cluster.package import code_digest; print('code', code_digest())"


class ClusterAwayError(XdistError):
    """The cluster's job API does not answer now; it may again."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job as the cluster knows it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def outcome(self) -> int:
        """The exit code for whoever waited: the command's own; 75 for a job that was stopped, which can be resumed."""
        if self.status == "STOPPED":
            return 75
        return 0 if self.status == "SUCCEEDED" else self.exit_code or 1


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, client: Any, url: str) -> None:
        self._client, self.url = client, url
        self.warning = ""
        """What a user should know of the way to it; empty if nothing."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What shows the token, for requests that are not made here."""
        return dict(self._client._headers)

    def submit(self, arguments: Sequence[str], *, gpus: float = 0.0) -> str:
        """Start `xdist-train ARGUMENTS` on the head; its job's id.

        Args:
            gpus: GPUs for the command's own process, which then runs on a node that has them.

        Raises:
            InputError: what `pack_files` refuses, or a head that cannot run the program.
        """
        name = f"{arguments[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        with tempfile.TemporaryDirectory(prefix="xdist-submit-") as folder:
            parcel = pack_files(arguments, Path(folder, "files"))
            environment: dict[str, Any] = {"env_vars": self._variables()}
            if parcel.names:
                environment["working_dir"] = str(parcel.folder)
            if self._code_there() != code_digest():
                environment["py_modules"] = [str(build_wheel(Path(folder)))]
            self._start(
                name,
                shlex.join([*_PYTHON, "-m", _PROGRAM, *parcel.arguments]),
                runtime_env=environment,
                metadata={"command": shlex.join(["xdist-train", *arguments]), "revision": code_revision()},
                entrypoint_num_gpus=gpus or None,
            )
        return name

    def find(self, job_id: str) -> Job:
        """One job.

        Raises:
            InputError: the cluster knows no such job.
            ClusterAwayError: no answer now.
        """
        with self._in_words(job_id):
            return _job(self._client.get_job_info(job_id))

    def wait(self, job_id: str, limit_s: float) -> Job:
        """A job when it has ended, or when the time is over.

        Raises:
            ClusterAwayError: no answer, and the time is over.
        """
        deadline = time.monotonic() + limit_s
        while True:
            is_over = time.monotonic() > deadline
            try:
                job = self.find(job_id)
                if job.has_ended or is_over:
                    return job
            except ClusterAwayError:
                if is_over:
                    raise
            time.sleep(_POLL_S)

    def list(self) -> list[Job]:
        """All jobs that were submitted, the newest first."""
        with self._in_words():
            listed = [info for info in self._client.list_jobs() if info.submission_id]
        found = [_job(info) for info in listed if not info.submission_id.startswith(_PROBE_ID)]
        return sorted(found, key=lambda job: -(job.started or 0))

    def log(self, job_id: str) -> str:
        """All that a job has said so far."""
        with self._in_words(job_id):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> bool:
        """Ask a job to end behind a checkpoint, which it does by itself; False if it had ended."""
        with self._in_words(job_id):
            return bool(self._client.stop_job(job_id))

    def _variables(self) -> dict[str, str]:
        return {
            "RAY_JOB_STOP_SIGNAL": "SIGTERM",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "110",
            "XDIST_REVISION": code_revision(),
            FOLLOWED: "1",
        }

    def _start(self, job_id: str, command: str, **values: Any) -> None:
        try:
            with self._in_words():
                self._client.submit_job(entrypoint=command, submission_id=job_id, **values)
        except ClusterAwayError:
            self.find(job_id)  # it may have heard, and only its answer was lost

    def _code_there(self) -> str:
        """The digest of the program that the head's `python` finds; empty where it finds none."""
        job_id = f"{_PROBE_ID}{secrets.token_hex(4)}"
        self._start(job_id, shlex.join([*_PYTHON, "-c", _PROBE]))
        try:
            job = self.wait(job_id, _PROBE_S)
            words = self.log(job_id).split()
        finally:
            self._forget(job_id)
        if job.exit_code == 127 or "'ray'" in words:
            raise InputError(
                f"the head of {self.url} cannot run a job: the `python` on its PATH is missing or has no Ray. Start "
                "Ray from an activated environment (`source .venv/bin/activate; ray start --head`)."
            )
        return words[words.index("code") + 1] if job.status == "SUCCEEDED" and "code" in words else ""

    def _forget(self, job_id: str) -> None:
        try:
            self._client.delete_job(job_id)
        except (RuntimeError, OSError):  # a line more in the list of jobs
            logging.getLogger(__name__).debug("job %s stays in the list", job_id)

    @contextmanager
    def _in_words(self, job_id: str = "") -> Iterator[None]:
        """Errors of the client as those of this program."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise _refused(self.url) from error
        except RuntimeError as error:
            text = " ".join(str(error).split())
            if job_id and "404" in text:
                raise InputError(
                    f"the cluster at {self.url} knows no job {job_id!r}. `xdist-train status` lists its jobs; a "
                    "head that was started anew has forgotten those before."
                ) from None
            if "status code 5" in text:
                raise ClusterAwayError(f"the cluster at {self.url} fails: {text[:300]}") from error
            raise InputError(f"the cluster at {self.url} refuses: {text[:500]}") from error
        except OSError as error:  # requests' errors are
            raise ClusterAwayError(f"no answer from the cluster at {self.url}: {error}") from error


def open_jobs(address: str = "") -> Jobs:
    """The jobs of the cluster at an address, of `RAY_API_SERVER_ADDRESS`, `RAY_ADDRESS`, or of this machine.

    Raises:
        InputError: nobody answers, the token is missing or wrong, or anyone on the network could come in.
    """
    shows_token = take_token()
    url = _url(address)
    host = urlsplit(url).hostname or ""
    asked = _asks_for_token(url)
    require_token(host, is_on=asked, is_near=is_loopback(host))
    if asked and not shows_token:
        raise InputError(f"the cluster at {url} asks for a token, and there is none here. {TOKEN_HELP}")
    jobs = Jobs(_client(url), url)
    if asked and urlsplit(url).scheme == "http" and not is_loopback(host):
        jobs.warning = (
            f"{url} is plain HTTP: whoever sits between here and there can read the token. Use https://, or a tunnel "
            "(`kubectl port-forward service/NAME-head-svc 8265`, `ssh -L 8265:127.0.0.1:8265 HEAD`)."
        )
    return jobs


def _url(address: str) -> str:
    from ray.dashboard.utils import ray_address_to_api_server_url

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", "") or os.environ.get("RAY_ADDRESS", "")
    scheme = urlsplit(address).scheme if "://" in address else ""
    if scheme in ("http", "https"):
        return address.rstrip("/")
    if scheme:
        raise InputError(f"{address!r}: give the address of the cluster's dashboard, e.g. http://127.0.0.1:8265.")
    try:
        return str(ray_address_to_api_server_url(address or None))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster found at {address or 'this machine'} ({' '.join(str(error).split())[:200]}). Start one "
            "with `ray start --head`, or give --address http://HOST:8265."
        ) from error


def _asks_for_token(url: str) -> bool:
    """Whether a request without a token is turned away."""
    import requests

    try:
        answer = requests.get(f"{url}/api/version", timeout=_ANSWER_S)
    except requests.RequestException as error:
        raise InputError(
            f"no answer from {url} ({type(error).__name__}). Is the cluster up, and its dashboard on? On Kubernetes, "
            "`kubectl port-forward service/NAME-head-svc 8265` makes it http://127.0.0.1:8265."
        ) from None
    if answer.status_code in (401, 403):
        return True
    if answer.status_code != 200:
        raise InputError(f"{url} is no Ray cluster: it answers {answer.status_code} to /api/version.")
    return False


def _client(url: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Ray's, which would wait for ever for an answer."""

        def _do_request(self, *arguments: Any, **values: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": _ANSWER_S, **values})

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # or RAY_ADDRESS would win over what is given
    try:
        return Client(url)
    except AuthenticationError as error:
        raise _refused(url) from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"{url}: {' '.join(str(error).split())[:300]}") from error


def _refused(url: str) -> InputError:
    return InputError(f"the cluster at {url} refuses the token that was shown. {TOKEN_HELP}")


def _job(info: Any) -> Job:
    return Job(
        id=info.submission_id or info.job_id,
        status=str(info.status.value if hasattr(info.status, "value") else info.status),
        command=(info.metadata or {}).get("command") or info.entrypoint,
        started=info.start_time / 1000 if info.start_time else None,
        ended=info.end_time / 1000 if info.end_time else None,
        exit_code=info.driver_exit_code,
        message=info.message or "",
    )
