"""What travels with a command to a cluster: YAML files that it names, and the program where the cluster has another.

Nothing else is ever packed: no folder is walked, so neither data nor runs, keys or a repository can slip in.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.disk import readable_bytes
from cluster.errors import InputError

__all__ = ["Parcel", "pack_files"]

_MOST_BYTES = 1 << 20
"""More than any recipe or space has."""
_YAML = (".yaml", ".yml")
_WITH_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]*@")


@dataclass(frozen=True)
class Parcel:
    """A command and the files that it finds beside itself."""

    arguments: list[str]
    folder: Path
    names: list[str]
    """Files in the folder; the job runs in a copy of it."""


def pack_files(arguments: Sequence[str], folder: Path) -> Parcel:
    """Copy the YAML files that the arguments name into a new folder, and let the arguments name the copies.

    A file may stand by itself (a recipe) or behind a `key=` or `--option=` (a space).

    Raises:
        InputError: a file that is not there or too large for a recipe, two of one name, or a password in a URI.
    """
    folder.mkdir(parents=True)
    packed: dict[str, Path] = {}
    told = []
    for argument in arguments:
        if _WITH_PASSWORD.search(argument):
            raise InputError(
                f"{_WITH_PASSWORD.sub('://***@', argument)!r} holds a password, and a job's command is shown to "
                "everyone who sees the cluster's dashboard. Give keys to the nodes by their environment."
            )
        key, equals, value = argument.rpartition("=")
        path = Path(value)
        if path.suffix.lower() not in _YAML or "://" in value:
            told.append(argument)
            continue
        source = _readable(path, argument)
        if packed.setdefault(path.name, source) != source:
            raise InputError(f"{argument!r}: another file called {path.name!r} is named too. Rename one of them.")
        shutil.copyfile(source, folder / path.name)
        told.append(f"{key}{equals}{path.name}")
    return Parcel(told, folder, sorted(packed))


def _readable(path: Path, argument: str) -> Path:
    if not path.is_file():
        raise InputError(f"{argument!r}: there is no file {str(path)!r} on this machine.")
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(
            f"{argument!r}: {readable_bytes(path.stat().st_size)} is too large for a recipe or a space (at most "
            f"{readable_bytes(_MOST_BYTES)}). Data goes into the object storage, not into a job."
        )
    return path.resolve()
