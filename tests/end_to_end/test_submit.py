"""Commands as jobs of a real head that asks for a token: what travels, what is shown, how it ends, who is let in."""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.config import dump_yaml
from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.end_to_end.commands import COMMAND, SMALL, copy_dataset, xdist_train
from tests.end_to_end.faults import wait_for
from tests.nodes import Nodes
from xdist_train.config import recipe_names, resolve_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("cluster", "dataloading", "tune_spaces", "xdist_train")
_TOKEN = secrets.token_hex(16)
_FORBIDDEN = re.compile(
    r"(^|/)(\.git|\.env|\.ssh|runs|data|cache|__pycache__)(/|$)|\.(pem|key|jpe?g|png|arrow|parquet)$"
)


@pytest.fixture(scope="module")
def old_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another version of the program, which cannot train: what the head's image holds."""
    folder = tmp_path_factory.mktemp("image")
    for package in _PACKAGES:
        shutil.copytree(_ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "xdist_train" / "__main__.py").write_text("raise SystemExit('this is the old program')\n")
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, old_program: Path) -> Iterator[Nodes]:
    """A head with a token and 2 CPUs, whose image has the old program."""
    environment = {"PYTHONPATH": str(old_program), "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}
    nodes = Nodes(tmp_path_factory.mktemp("nodes"), environment=environment, token=_TOKEN)
    try:
        nodes.add(2, head=True)
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, bands: Dataset) -> Path:
    """A user's folder: a recipe, and beside it all that must stay there."""
    folder = tmp_path_factory.mktemp("project")
    config = resolve_config("demo", SMALL)
    (folder / "mine.yaml").write_text(dump_yaml(config))
    for name in (".git/config", ".env", "data/scan.jpeg", "runs/first/run.json", "cache/00000.arrow", "id.key"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("must stay")
    return folder


@pytest.fixture
def where(bands: Dataset, tmp_path: Path) -> list[str]:
    """Data and results of a run, on the disk that head and user share."""
    return [f"data.uri={bands.store.uri}", f"storage.uri={tmp_path}/runs", f"loader.cache_dir={tmp_path}/cache"]


def _submit(nodes: Nodes, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return xdist_train("submit", "--address", nodes.dashboard, "--", *command, **nodes.with_token, **environment)


def test_a_command_runs_on_the_head_as_it_would_here(
    head: Nodes, project: Path, where: list[str], tmp_path: Path
) -> None:
    """The user's recipe and program travel, nothing else; the log is followed; no token is anywhere to be read."""
    recipe = str(project / "mine.yaml")
    done = _submit(head, "train", recipe, *where, "run.name=run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 2: train loss" in done.stdout
    assert "balanced accuracy" in done.stdout
    assert "\x1e" not in done.stdout
    record = open_store(f"{tmp_path}/runs/run").read_json("run.json")
    assert ("finished", "xdist-train train mine.yaml") == (record["status"], record["command"][:27])
    # What the head has received, and where: two packages of this job's.
    resources = head.ray_folder / "0" / "session_latest" / "runtime_resources"
    (code,) = (path for path in (resources / "py_modules_files").iterdir() if path.is_dir())
    (files,) = (path for path in (resources / "working_dir_files").iterdir() if path.is_dir())
    assert ["mine.yaml"] == [path.name for path in files.rglob("*")]
    names = [path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file()]
    source = [name for name in names if not name.startswith("bin/")]
    assert {name.split("/")[0].split("-")[0] for name in source} == set(_PACKAGES)
    assert [name for name in source if _FORBIDDEN.search(name.replace("__pycache__", ""))] == []
    assert {f"xdist_train/recipes/{name}.yaml" for name in recipe_names()} <= set(names)
    _assert_token_stays(head, done, tmp_path / "runs")


def _assert_token_stays(head: Nodes, done: subprocess.CompletedProcess[str], runs: Path) -> None:
    """In no log, run folder, job's metadata or process list; the search finds what is there."""
    token = _TOKEN.encode()
    places: dict[str, bytes] = {"output": (done.stdout + done.stderr).encode()}
    for folder in (runs, head.ray_folder):
        files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        places |= {str(path): path.read_bytes() for path in files}
    for page in ("/api/jobs/", "/api/v0/jobs?detail=true", "/api/v0/actors?detail=true", "/nodes?view=summary"):
        places[page] = head.get(page)
    lines = [line for node in head.nodes for line in node.processes().values()]
    places["processes"] = "\n".join(lines).encode()
    assert [] == [name for name, data in places.items() if token in data]
    assert b"mine.yaml" in places["/api/jobs/"]
    assert b"raylet" in places["processes"]
    assert any(b"epoch 2: train loss" in data for name, data in places.items() if "job-driver" in name)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["train", "demo", "train.epoch=1"], 2, "Did you mean 'train.epochs'?"),
        (["train", "demo", "data.uri=packed"], 2, "'packed' is a path that starts in the folder of this job"),
        (["train", "nowhere.yaml"], 2, "there is no file 'nowhere.yaml' on this machine"),
        (["trian", "demo"], 2, "Did you mean 'train'?"),
    ],
)
def test_the_exit_code_is_the_commands(head: Nodes, command: list[str], code: int, words: str) -> None:
    """What is wrong is said here in the command's own words, and this command ends with its code."""
    done = _submit(head, *command)
    assert (code, True) == (done.returncode, words in done.stdout + done.stderr), done.stdout + done.stderr


class _Follower:
    """`xdist-train submit` as a process whose words are in a file."""

    def __init__(self, nodes: Nodes, address: str, said: Path, *command: str) -> None:
        self.path = said
        with said.open("w") as stream:
            self.process = subprocess.Popen(
                [*COMMAND, "submit", "--address", address, "--", *command],
                env={**os.environ, **nodes.with_token},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def said(self) -> str:
        return self.path.read_text()

    def wait_until_said(self, text: str) -> None:
        wait_for(lambda: text in self.said() or self.process.poll() is not None)
        assert text in self.said(), self.said()

    def job(self) -> str:
        self.wait_until_said("job: ")
        return re.search(r"job: (\S+)", self.said())[1]  # type: ignore[index]

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class _Proxy:
    """A way to a port that can be cut: every connection is closed, and no new one comes through."""

    def __init__(self, port: int) -> None:
        self._target, self._open, self.cut_off = port, list[socket.socket](), False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.cut_off = True
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.cut_off = False

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.cut_off:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


_LONG = ("train.epochs=200", "checkpoint.every_steps=2", "train.log_every_steps=1")
_LIVE_LINE = re.compile(r"epoch \d+/200  step \d")


def test_a_job_outlives_its_follower_and_stops_behind_a_checkpoint(
    head: Nodes, where: list[str], tmp_path: Path
) -> None:
    """A cut connection is taken up again without a line lost or told twice; whoever follows may go; `stop` ends it."""
    proxy = _Proxy(int(head.dashboard.rpartition(":")[2]))
    address = f"http://127.0.0.1:{proxy.port}"
    follower = _Follower(head, address, tmp_path / "said", "train", "demo", *where, *SMALL, *_LONG, "run.name=long")
    try:
        job = follower.job()
        follower.wait_until_said("epoch 2: ")
        proxy.cut()
        follower.wait_until_said("the job goes on, trying again")
        proxy.mend()
        follower.wait_until_said("connected again")
        after = len(re.findall(r"^epoch \d+: ", follower.said(), re.MULTILINE))
        follower.wait_until_said(f"epoch {after + 3}: ")
        epochs = [int(number) for number in re.findall(r"^epoch (\d+): ", follower.said(), re.MULTILINE)]
        assert list(range(1, len(epochs) + 1)) == epochs
        follower.process.send_signal(signal.SIGINT)
        assert 0 == follower.process.wait(30), follower.said()
        assert f"{job} goes on." in follower.said()
        told = xdist_train("status", job, "--address", address, "--json", **head.with_token)
        assert "RUNNING" == json.loads(told.stdout)[0]["status"]
        shown = _answer_at_a_terminal(["logs", job, "--address", address], "no", head.with_token)
        assert (0, True) == (shown[0], f"{job} goes on." in shown[1]), shown
        stopped = xdist_train("stop", job, "--address", address, **head.with_token)
        assert (0, True) == (stopped.returncode, f"{job}: stopped." in stopped.stdout), stopped.stdout + stopped.stderr
        again = xdist_train("logs", job, "--address", address, **head.with_token)
        assert (75, True) == (again.returncode, "run.resume=must goes on" in again.stdout + again.stderr)
    finally:
        follower.end()
        proxy.close()
    record = open_store(f"{tmp_path}/runs/long").read_json("run.json")
    assert "stopped" == record["status"]
    assert [path.name for path in (tmp_path / "runs/long/checkpoints").glob("e*")]


def test_ctrl_c_may_stop_the_job(head: Nodes, where: list[str], tmp_path: Path) -> None:
    """At a terminal it asks; after a yes the log goes on to the job's end behind a checkpoint, and the code is 75."""
    submission = [
        "submit",
        "--address",
        head.dashboard,
        "--",
        "train",
        "demo",
        *where,
        *SMALL,
        *_LONG,
        "run.name=asked",
    ]
    code, said = _answer_at_a_terminal(submission, "y", head.with_token)
    assert (75, True) == (code, "behind a checkpoint" in said.partition("is asked to stop")[2]), said
    assert _LIVE_LINE.search(said), "the live line of a run here"
    assert "stopped" == open_store(f"{tmp_path}/runs/asked").read_json("run.json")["status"]


def _answer_at_a_terminal(command: list[str], answer: str, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and screen of a command that is interrupted once it has drawn a live line, and then answered."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *command], env={**os.environ, **environment, "COLUMNS": "140"}, stdin=its, stdout=its, stderr=its
    )
    os.close(its)
    said = ""
    interrupted = answered = False
    try:
        with suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 65536).decode(errors="replace"):
                said += piece
                if not interrupted and "epoch 2: " in said and _LIVE_LINE.search(said):
                    process.send_signal(signal.SIGINT)
                    interrupted = True
                if not answered and "[y/N]" in said:
                    os.write(ours, f"{answer}\n".encode())
                    answered = True
        return process.wait(60), said
    finally:
        os.close(ours)
        process.kill()


@pytest.mark.parametrize("token", ["", "wrong"])
def test_nobody_comes_in_without_the_token(head: Nodes, token: str, tmp_path: Path) -> None:
    """Submission, dashboard, driver and Ray Client are refused without a token and with a wrong one.

    The dashboard's empty page itself is there for all; whatever it would show is not.
    """
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "HOME": str(tmp_path)}
    if not token:
        environment["RAY_AUTH_MODE"] = "disabled"
    client = f"127.0.0.1:{head.client_port}"
    refused = xdist_train("submit", "--address", head.dashboard, "--", "train", "demo", **environment)
    assert (2, True) == (refused.returncode, "token" in refused.stderr), refused.stderr
    for page in ("/api/version", "/api/jobs/", "/nodes?view=summary", "/api/v0/actors", "/api/v0/logs"):
        request = urllib.request.Request(head.dashboard + page)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=30)
        assert (403 if token else 401) == error.value.code, page
    assert "came in" not in _python(f"ray.util.connect({client!r}, connection_retries=1)", environment)
    assert "came in" not in _python(f"GcsClient({head.address!r}).get_all_node_info(timeout=5)", environment)
    joined = xdist_train("doctor", RAY_ADDRESS=head.address, **environment)
    assert (2, True) == (joined.returncode, "asks for a token" in joined.stderr), joined.stderr


def test_the_token_opens_all_doors(head: Nodes) -> None:
    """The same attempts with the token come in: the refusals above are not for another reason."""
    client = f"127.0.0.1:{head.client_port}"
    for line in (
        f"ray.util.connect({client!r}, connection_retries=5)",
        f"GcsClient({head.address!r}).get_all_node_info(timeout=30)",
    ):
        # Ray Client gives a new server 30 s to start, which a busy machine may miss; a refusal would be one each time
        said = [_python(line, head.with_token)]
        while "came in" not in said[-1] and len(said) < 3:
            said.append(_python(line, head.with_token))
        assert "came in" in said[-1], "\n\n".join(said)


def _python(line: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import ray; from ray._raylet import GcsClient; {line}; print('came in')"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout + done.stderr


def _examine(*arguments: str, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and lines of a doctor, by what they are of, without the node's name."""
    done = xdist_train("doctor", "--json", *arguments, **environment)
    assert done.stdout.startswith("["), done.stdout + done.stderr
    lines = json.loads(done.stdout)
    return done.returncode, {re.sub(r" (on|of|from) .*", "", line["what"]): line for line in lines}


def test_the_doctor_finds_a_healthy_cluster_green(head: Nodes, bands: Dataset, tmp_path: Path) -> None:
    """All lines of a cluster far away, which one program is sent to."""
    places = ("--data", bands.store.uri, "--storage", str(tmp_path / "runs"))
    code, lines = _examine("--address", head.dashboard, *places, **head.with_token)
    assert [] == [line for line in lines.values() if not line["ok"]]
    seen = (
        "nodes for workers",
        "versions",
        "token authentication",
        "/dev/shm",
        "clock",
        "storage",
        "decoders",
        "data set",
    )
    assert {*seen, "gloo between two processes", f"the way to {head.dashboard}"} == set(lines)
    assert 0 == code


def test_the_doctor_says_what_is_wrong(head: Nodes, bands: Dataset, s3: str, tmp_path: Path) -> None:
    """Nodes without keys for the storage, where results and data lie: red from each, with what to do."""
    copy_dataset(bands, f"{s3}/packed")
    # The head was started without keys for the storage; its jobs and workers have none.
    places = ("--data", f"{s3}/packed", "--storage", s3, "--cache-dir", str(tmp_path / "cache"))
    code, lines = _examine(*places, RAY_ADDRESS=head.address, **head.with_token)
    red = {what: line["told"] for what, line in lines.items() if not line["ok"]}
    assert {"storage", "data set"} == set(red)
    assert all(lines[what]["todo"] for what in red)
    assert 1 == code


def test_the_doctor_sees_an_open_door(bands: Dataset, s3: str, tmp_path: Path) -> None:
    """A cluster of this machine without authentication, and a cache without room, are red."""
    copy_dataset(bands, f"{s3}/packed")
    cache = ("--cache-dir", str(tmp_path / "cache"), "--cache-limit-gib", "0.00001")
    code, lines = _examine("--data", f"{s3}/packed", *cache, RAY_ADDRESS="local", RAY_AUTH_MODE="disabled")
    red = {what: line["told"] for what, line in lines.items() if not line["ok"]}
    assert {"token authentication", "data set"} == set(red)
    assert "GiB" in red["data set"] or "MiB" in red["data set"]
    assert 1 == code
