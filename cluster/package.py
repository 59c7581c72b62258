"""The program as a thing that travels: its revision, the digest of its code, and a wheel of what is installed here.

The wheel is made from the files of the installed packages (also of an editable installation), so that it needs
neither a build tool nor a network, and holds Python and YAML files of those packages and nothing else. It names no
dependencies: Ray installs it on each node by `pip install --target`, which would fetch all of them anew.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import platform
import subprocess
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

__all__ = ["DISTRIBUTION", "build_wheel", "code_digest", "code_revision", "installed_versions"]

DISTRIBUTION = "xdist-train"

_ROOT = Path(__file__).resolve().parents[1]
_SHIPPED = (".py", ".yaml")
# An installation calls it METADATA, the leftovers of a build in a checkout PKG-INFO.
_METADATA = {
    "METADATA": ("METADATA", "PKG-INFO"),
    "entry_points.txt": ("entry_points.txt",),
    "top_level.txt": ("top_level.txt",),
}
_DEPENDS = ("Requires-Dist:", "Provides-Extra:")
_WHEEL = "Wheel-Version: 1.0\nGenerator: xdist-train\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # equal code, equal bytes: a cluster keeps what it has


def code_revision() -> str:
    """Revision of this program: `XDIST_REVISION` where a build set it, git's where it runs from a checkout."""
    if os.environ.get("XDIST_REVISION"):
        return os.environ["XDIST_REVISION"]
    if not (_ROOT / ".git").exists():
        return f"release {metadata.version(DISTRIBUTION)}"
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those of the named distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_digest() -> str:
    """sha256 over names and bytes of all files that the wheel would hold."""
    digest = hashlib.sha256()
    for name, data in _files():
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def build_wheel(folder: Path) -> Path:
    """Write the wheel into a folder; equal code gives equal bytes."""
    version = metadata.version(DISTRIBUTION)
    stem = f"{DISTRIBUTION.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in (*_files(), *_dist_info(stem)):
            wheel.writestr(_entry(name), data)
            checksum = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.writerow((name, f"sha256={checksum}", len(data)))
        rows.writerow((f"{stem}.dist-info/RECORD", "", ""))
        wheel.writestr(_entry(f"{stem}.dist-info/RECORD"), record.getvalue())
    return path


def _files() -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the packages' own files, in order."""
    packages = (metadata.distribution(DISTRIBUTION).read_text("top_level.txt") or "").split()
    assert packages, "an installation without top_level.txt"
    for package in sorted(packages):
        for path in sorted((_ROOT / package).rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(_ROOT).parts)
            if path.suffix in _SHIPPED and path.is_file() and not path.is_symlink() and not hidden:
                yield path.relative_to(_ROOT).as_posix(), path.read_bytes()


def _dist_info(stem: str) -> Iterator[tuple[str, bytes]]:
    distribution = metadata.distribution(DISTRIBUTION)
    for name, names in _METADATA.items():
        text = next(filter(None, map(distribution.read_text, names)), "")
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith(_DEPENDS)]
        yield f"{stem}.dist-info/{name}", "".join(lines).encode()
    yield f"{stem}.dist-info/WHEEL", _WHEEL.encode()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry
