"""The exception tree. Every error a user can meet is one of these; each survives pickling between processes.

An error's text is one paragraph: what was wrong, the value, where it came from, what to do.
"""

from __future__ import annotations

__all__ = [
    "InputError",
    "MissingObjectError",
    "NoRoomError",
    "RunFailedError",
    "StoppedError",
    "StoreError",
    "StoreRefusedError",
    "XdistError",
]


class XdistError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(XdistError, ValueError):
    """What the user gave cannot be used: configuration, data, names, files. Nothing was written."""

    exit_code = 2


class NoRoomError(InputError):
    """More was asked for than the cluster has; with another node it may do."""


class StoreError(XdistError):
    """The storage failed (disk full, denied, away); nothing that looks finished was left."""


class MissingObjectError(StoreError):
    """An object that was to be read is not in the storage."""


class StoreRefusedError(StoreError):
    """The storage says no (credentials, rights, no such bucket, no room left): asking again does not help."""


class RunFailedError(XdistError):
    """A run ended by a failure that would come again.

    Args:
        kind: short machine name of the cause, e.g. `non_finite_loss`.
        message: the paragraph for the user.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[RunFailedError], tuple[str, str]]:
        return type(self), (self.kind, str(self))


class StoppedError(XdistError):
    """A run was asked to stop and did so behind a checkpoint; the same command can resume it."""

    exit_code = 75
