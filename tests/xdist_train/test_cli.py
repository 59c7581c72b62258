"""The command line as a user meets it."""

from __future__ import annotations

import resource
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from xdist_train.cli import main

_COMMAND = [str(Path(sys.executable).with_name("xdist-train"))]
_VERBS = sorted(point.name for point in entry_points(group="xdist_train.verbs"))


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_answers_at_once() -> None:
    """`--help` lists every verb in under a second of CPU time, the best of three."""
    seconds = []
    for _ in range(3):
        started = _children_cpu_s()
        result = _run("--help")
        seconds.append(_children_cpu_s() - started)
    assert [verb for verb in _VERBS if verb not in result.stdout] == []
    assert min(seconds) < 1


def test_help_imports_nothing_heavy() -> None:
    """Neither torch nor Ray, DALI, OpenCV, timm or matplotlib is loaded to show the verbs."""
    code = (
        "import sys; from xdist_train.cli import build_app; build_app(); "
        "print(sorted({'torch','ray','nvidia','cv2','timm','matplotlib','omegaconf','pyarrow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"[]", "['omegaconf']"} >= {result.stdout.strip()}


@pytest.mark.parametrize("verb", _VERBS)
def test_each_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`VERB --help` shows a line to copy."""
    assert main([verb, "--help"]) == 0
    assert f"Example: xdist-train {verb}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "nothing"], "unknown recipe 'nothing'"),
        (["train", "oct", "train.epoch=3"], "'train.epochs'"),
        (["train", "oct"], "data.uri is not set"),
        (["train", "oct", "data.uri=/nowhere"], "holds no packed dataset"),
        (["evaluate", "/nowhere"], "/nowhere"),
        (["predict", "/nowhere", "x.png"], "/nowhere"),
        (["pack", "/nowhere", "--out", "/nowhere2"], "/nowhere"),
        (["demo", "--out", "/"], "exists"),
        (["no-such-verb"], "No such command"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    arguments: list[str], part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """No traceback; the text says what was wrong."""
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert part in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback() -> None:
    """`--debug` before the verb raises instead."""
    assert "Traceback" in _run("--debug", "train", "nothing").stderr


def test_version() -> None:
    """`--version` prints name and version."""
    assert _run("--version").stdout.startswith("xdist-train 0.")
