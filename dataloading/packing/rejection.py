"""Why a file is left out: an exception inside a format's reader, a record in the quarantine list."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NOT_AN_IMAGE", "TRUNCATED", "Rejected", "RejectedError"]

NOT_AN_IMAGE = "not an image"
TRUNCATED = "truncated"


class RejectedError(Exception):
    """A file that cannot be packed; the text is the reason, in plain words."""


@dataclass(frozen=True)
class Rejected:
    """One file that was left out, by its path relative to the source folder."""

    source: str
    reason: str
