"""What travels with a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.parcel import pack_files


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with recipes, and what must not leave it."""
    for name in (
        "mine.yaml",
        "spaces/wide.yml",
        ".git/config",
        ".env",
        "data/scan.jpeg",
        "runs/a/run.json",
        "id_rsa.key",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_that_are_named_travel_and_nothing_else(project: Path) -> None:
    """A recipe and a space lie beside the command, under their own names; a URI and plain settings stay as they are."""
    told = ["tune", "mine.yaml", "space=spaces/wide.yml", "data.uri=s3://b/x.yaml", "train.epochs=2", "--json"]
    parcel = pack_files(told, project / "out")
    assert ["mine.yaml", "wide.yml"] == parcel.names == sorted(path.name for path in (project / "out").rglob("*"))
    assert ["tune", "mine.yaml", "space=wide.yml", *told[3:]] == parcel.arguments
    assert "spaces/wide.yml" == (project / "out/wide.yml").read_text()


def test_a_file_named_twice_travels_once(project: Path) -> None:
    """By two spellings of its path."""
    assert ["mine.yaml"] == pack_files(["mine.yaml", f"space={project}/mine.yaml"], project / "out").names


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("theirs.yaml", "there is no file 'theirs.yaml'"),
        ("space=huge.yaml", "too large for a recipe"),
        ("other/mine.yaml", "another file called 'mine.yaml'"),
        ("data.uri=s3://key:secret@host/b", r"'data.uri=s3://\*\*\*@host/b' holds a password"),
    ],
)
def test_what_cannot_travel_is_refused(project: Path, argument: str, words: str) -> None:
    """A missing file, one that is no recipe by its size, two of one name, and a password, which is not repeated."""
    (project / "huge.yaml").write_bytes(b"#" * (2 << 20))
    (project / "other").mkdir()
    (project / "other/mine.yaml").write_text("another")
    with pytest.raises(InputError, match=words) as error:
        pack_files(["train", "mine.yaml", argument], project / "out")
    assert "secret" not in str(error.value)
