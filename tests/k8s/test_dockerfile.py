"""The image's recipe, as far as it can be read: nothing here can build it (no Docker, no network)."""

from __future__ import annotations

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path

from tests.k8s.manifests import ray_pods, render

_REPOSITORY = Path(__file__).parents[2]
_DOCKERFILE = _REPOSITORY / "k8s" / "Dockerfile"


def _instructions() -> list[tuple[str, str, str]]:
    """(stage, instruction, arguments) in order; continued lines are joined, comments left out."""
    lines = [line for line in _DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    found, stage = [], ""
    for line in filter(str.strip, "\n".join(lines).replace("\\\n", " ").splitlines()):
        name, _, arguments = line.strip().partition(" ")
        assert name in {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "CMD"}, line
        stage = arguments.split()[-1] if name == "FROM" else stage
        found.append((stage, name, " ".join(arguments.split())))
    return found


def _copied_from_the_repository() -> list[tuple[str, str]]:
    """(stage, path) of what COPY takes from the repository."""
    copies = [(stage, shlex.split(arguments)) for stage, name, arguments in _instructions() if name == "COPY"]
    return [(stage, path) for stage, words in copies if "--from=" not in words[0] for path in words[:-1]]


def _goes_to_the_builder(path: str) -> bool:
    """.dockerignore: the last line that matches decides."""
    goes = True
    for line in (_REPOSITORY / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(path, line.removeprefix("!")):
            goes = line.startswith("!")
    return goes


def test_what_is_copied_exists_and_goes_to_the_builder() -> None:
    """Every source of a COPY is in the repository, and .dockerignore lets it through; nothing else."""
    paths = {path for _, path in _copied_from_the_repository()}
    assert len(paths) >= 8
    assert all((_REPOSITORY / path).exists() for path in paths)
    assert paths == {path.name for path in _REPOSITORY.iterdir() if _goes_to_the_builder(path.name)}


def test_every_package_is_in_the_image() -> None:
    """What pyproject.toml packs into a wheel is copied to where the wheel is built."""
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = {path for stage, path in _copied_from_the_repository() if stage == "wheel"}
    assert {package.removesuffix("*") for package in packages} <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"} <= copied


def test_code_comes_after_dependencies() -> None:
    """A change of the code leaves the layer of gigabytes alone: only pins go into it, and the code goes in last."""
    assert {"pyproject.toml", "constraints.txt"} == {
        path for stage, path in _copied_from_the_repository() if stage == "dependencies"
    }
    steps = [f"{name} {arguments}" for stage, name, arguments in _instructions() if stage == "runtime"]
    (dependencies,) = [place for place, step in enumerate(steps) if step.startswith("COPY --from=dependencies")]
    (code,) = [place for place, step in enumerate(steps) if "from=wheel" in step]
    assert dependencies < code
    assert "--no-deps" in steps[code]
    assert any("--constraint constraints.txt" in arguments for _, _, arguments in _instructions())


def test_stages_are_built_from_those_above() -> None:
    """FROM and --from name a stage that is there already, or the one base image, which has a version."""
    known: set[str] = set()
    for _, name, arguments in _instructions():
        used = re.findall(r"(?:--|,)from=(\w+)", arguments)
        if name == "FROM":
            source, _, stage = arguments.split()
            used = [] if source == "${BASE}" else [source]
            known.add(stage)
        assert set(used) <= known, arguments
    (base,) = [arguments for _, name, arguments in _instructions() if name == "ARG" and arguments.startswith("BASE=")]
    version = re.fullmatch(r"BASE=python:(\d+)\.(\d+)-slim-bookworm", base)
    assert version
    assert (int(version[1]), int(version[2])) >= (3, 11)


def test_the_images_user_is_the_pods() -> None:
    """The image ends as a numbered user that is not root, the one that the manifests name."""
    *_, user = [arguments for _, name, arguments in _instructions() if name == "USER"]
    users = {
        f"{pod.spec['securityContext']['runAsUser']}:{pod.spec['securityContext']['runAsGroup']}"
        for pod in ray_pods(render("gpu"))
    }
    assert {user} == users
    assert user.split(":")[0] != "0"


def test_what_the_pods_hook_calls_is_installed() -> None:
    """preStop's pkill and pgrep come with procps, which a slim image lacks."""
    hooks = {pod.ray["lifecycle"]["preStop"]["exec"]["command"][-1] for pod in ray_pods(render("gpu"))}
    assert {True} == {"pkill" in hook and "pgrep" in hook for hook in hooks}
    (installed,) = [
        arguments for _, name, arguments in _instructions() if name == "RUN" and "apt-get install" in arguments
    ]
    assert "procps" in installed.split()
