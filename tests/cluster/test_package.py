"""The program as a wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from cluster.package import build_wheel, code_digest
from tune_spaces.space_file import space_names
from xdist_train.config import recipe_names

_RUN = (
    "from xdist_train.cli import main; from cluster.package import code_digest; main(['--help']); print(code_digest())"
)


def test_the_wheel_is_the_program(tmp_path: Path) -> None:
    """Installed elsewhere it has the same code, all verbs and all recipes, and asks pip for nothing else."""
    wheel = build_wheel(tmp_path)
    there = tmp_path / "there"
    # As Ray does it, and with no index to ask.
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", str(wheel), f"--target={there}"]
    subprocess.run(install, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _RUN],
        env={"PYTHONPATH": str(there), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert code_digest() == done.stdout.split()[-1]
    assert [verb for verb in ("train", "tune", "pack", "submit") if f" {verb} " not in done.stdout] == []
    names = {path.relative_to(there).as_posix() for path in there.rglob("*.yaml")}
    recipes = {f"xdist_train/recipes/{name}.yaml" for name in recipe_names()}
    assert recipes | {f"tune_spaces/spaces/{name}.yaml" for name in space_names()} == names


def test_the_wheel_holds_python_and_yaml_of_the_packages_alone(tmp_path: Path) -> None:
    """No test, no data, no key, no repository, nothing hidden, whatever lies beside the packages."""
    names = zipfile.ZipFile(build_wheel(tmp_path)).namelist()
    packages = ("cluster/", "dataloading/", "tune_spaces/", "xdist_train/")
    others = [name for name in names if not (name.startswith(packages) and name.endswith((".py", ".yaml")))]
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"} == {Path(name).name for name in others}
    assert [name for name in names if "/." in name or "__pycache__" in name] == []


def test_equal_code_gives_equal_bytes(tmp_path: Path) -> None:
    """A cluster that has the wheel is not sent it again."""
    (tmp_path / "again").mkdir()
    assert build_wheel(tmp_path).read_bytes() == build_wheel(tmp_path / "again").read_bytes()
