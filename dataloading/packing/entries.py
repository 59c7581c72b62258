"""One accepted image with everything known of it, as packing gathers it.

The row of the manifest before the splits are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataloading.packing.examine import Facts
from dataloading.packing.scan import ImageFile

__all__ = ["Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One image; its id is its place in the list of entries. `rule` is what named the patient."""

    image: ImageFile
    label: int
    patient: str
    rule: str
    shard: int
    row: int
    facts: Facts
