"""Where a run stands, as plain JSON values: position, history, selection, and the small states of its rules.

Knows no tensors; weights and optimiser moments travel beside it (`checkpoint.py`).
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from xdist_train.models.export import Selection
from xdist_train.training.messages import Failure

__all__ = ["Outcome", "TrainState"]


@dataclass(kw_only=True)
class TrainState:
    """Position and memory of a run. `(epoch, step)` is the next step to run; steps count within their epoch."""

    epoch: int = 0
    step: int = 0
    stopped_early: bool = False
    selection: Selection | None = None
    early_stopping: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    loss_sum: float = 0.0
    """Sum of the losses of this epoch's steps so far."""
    row_loss_sum: float = 0.0
    """Sum of the losses since the last row of kind `step`, and how many steps that were."""
    row_steps: int = 0
    samples: int = 0
    """Digest of which image was drawn in which micro batch of which step, over all steps behind these weights."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of kind `step` and `epoch`; metrics.jsonl and TensorBoard are written from it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by part, over all attempts that are behind these weights."""

    def add_seconds(self, part: str, seconds: float) -> None:
        """Count time under a part's name."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are now; rows of the history, which never change, are not copied."""
        values = {item.name: copy.copy(getattr(self, item.name)) for item in dataclasses.fields(self)}
        return {**values, "selection": dataclasses.asdict(self.selection) if self.selection else None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainState:
        """The reverse of `to_json`."""
        selection = values["selection"]
        return cls(**{**values, "selection": Selection(**selection) if selection else None})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the loop ended: `finished`, `stopped` (behind a checkpoint) or `failed`."""

    status: str
    state: TrainState
    failure: Failure | None = None
