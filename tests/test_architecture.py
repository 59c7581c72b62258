"""The arrows between packages go one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ["cluster", "dataloading", "xdist_train", "tune_spaces"]
_ROOMS = ["models", "evidence", "training", "estimation"]
_BOUNDARIES = {
    "omegaconf": ["cluster/config.py"],
    "s3fs": ["cluster/s3.py"],
    "botocore": ["cluster/s3_errors.py"],
    "aiohttp": ["cluster/follow.py", "cluster/s3_errors.py"],
    "requests": ["cluster/jobs.py"],
    "optuna": ["tune_spaces/importance.py", "tune_spaces/study.py"],
}


def _modules() -> list[Path]:
    return sorted(path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(_ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    """cluster <- dataloading <- xdist_train <- tune_spaces; rooms of xdist_train too; loading without packing."""
    parts = path.relative_to(_ROOT).parts
    above = set(_PACKAGES[_PACKAGES.index(parts[0]) + 1 :])
    if parts[0] == "xdist_train" and parts[1] in _ROOMS:
        above |= {f"xdist_train.{room}" for room in _ROOMS[_ROOMS.index(parts[1]) + 1 :]}
    if parts[:2] == ("dataloading", "loading"):
        above.add("dataloading.packing")
    wrong = [name for name in _imports(path) if any(name == other or name.startswith(f"{other}.") for other in above)]
    assert wrong == []


@pytest.mark.parametrize("library", _BOUNDARIES)
def test_a_library_is_imported_at_its_boundary_only(library: str) -> None:
    """omegaconf belongs to the config gate, S3 to the store, Optuna to the samplers."""
    users = [
        str(path.relative_to(_ROOT)) for path in _modules() if library in {n.split(".")[0] for n in _imports(path)}
    ]
    assert _BOUNDARIES[library] == users


def test_the_loop_and_the_search_know_no_ray() -> None:
    """Only what connects, builds, watches, measures and is a Ray job, hands out parts, or is a trial, imports Ray."""
    users = {
        str(path.relative_to(_ROOT)) for path in _modules() if "ray" in {name.split(".")[0] for name in _imports(path)}
    }
    training = {
        f"xdist_train/training/{name}.py" for name in ("job", "group_events", "process_group", "worker", "gauges")
    }
    search = {f"tune_spaces/{name}.py" for name in ("tuner", "trial")}
    explaining = {"xdist_train/evidence/cams/job.py"}
    assert {f"cluster/{name}.py" for name in ("access", "jobs", "session")} | explaining | training | search == users
