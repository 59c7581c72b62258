"""A safetensors file as tensors by name, and the limits under which one is read.

The one place where this program reads tensors that may come from anybody. The format holds names, shapes and
numbers; nothing in it is executed. Knows no network.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from cluster.errors import InputError
from cluster.store import DOCUMENT_LIMIT_BYTES, OBJECT_LIMIT_BYTES, check_size

__all__ = ["WEIGHTS_LIMIT_BYTES", "parse_tensors", "read_tensors"]

WEIGHTS_LIMIT_BYTES = OBJECT_LIMIT_BYTES
"""Of a model's weights: 4 GiB are a thousand million parameters in float32. Larger files are refused unread."""

_LENGTH_BYTES = 8  # of the header's length, little-endian, before the header
# What reading a file raises that is no safetensors: the library's own, and for types of numbers that it or torch lacks.
_ERRORS = (SafetensorError, KeyError, ValueError, TypeError, AssertionError, RuntimeError, OverflowError)


def parse_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file in memory.

    Raises:
        InputError: it is not one.
    """
    _check_header(data[:_LENGTH_BYTES], len(data), where)
    try:
        return load(data)
    except _ERRORS as error:
        raise InputError(_not_whole(where, error)) from None


def read_tensors(path: Path, limit_bytes: int) -> dict[str, Tensor]:
    """The tensors of a safetensors file on a disk, which is mapped: no second copy of it is made.

    Raises:
        InputError: it is not one, or is larger than the limit.
        OSError: it cannot be read.
    """
    num_bytes = path.stat().st_size
    check_size(str(path), num_bytes, limit_bytes)
    with path.open("rb") as stream:
        _check_header(stream.read(_LENGTH_BYTES), num_bytes, str(path))
    try:
        return load_file(path)
    except _ERRORS as error:
        raise InputError(_not_whole(str(path), error)) from None


def _check_header(start: bytes, num_bytes: int, where: str) -> None:
    """The header says how much of it is to be parsed, and every tensor that it names becomes an object."""
    claimed = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or claimed > num_bytes - _LENGTH_BYTES:
        raise InputError(_not_whole(where, f"its header claims {claimed:,} bytes, the file has {num_bytes:,}"))
    check_size(f"the header of {where}", claimed, DOCUMENT_LIMIT_BYTES)


def _not_whole(where: str, reason: object) -> str:
    return (
        f"{where}: not a whole safetensors file ({' '.join(str(reason).split())[:300]}). Give the file that was "
        "written, or make it again."
    )
