"""The small actor between a search's driver and its trials: orders and verdicts one way, positions the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xdist_train.training.messages import Ending

if TYPE_CHECKING:
    from tune_spaces.trial import TrialOrder

__all__ = ["EPOCH", "FIGURE", "TRIAL", "Board"]

# Keys of a trial's config and of its reports in Tune.
TRIAL, EPOCH, FIGURE = "trial", "epoch", "figure"


class Board:
    """Run as a Ray actor, one a search; every method answers at once."""

    def __init__(self) -> None:
        self._orders: dict[str, TrialOrder] = {}
        self._texts: dict[str, str] = {}
        self._verdicts: dict[str, Ending] = {}
        self._reasons: dict[str, str] = {}
        self._stopping = False

    def give(self, order: TrialOrder) -> None:
        """An order that a trial is about to ask for."""
        self._orders[order.name] = order
        self._verdicts.pop(order.name, None)

    def order(self, name: str) -> TrialOrder:
        """What a trial is to do."""
        return self._orders[name]

    def end(self, name: str, verdict: Ending) -> None:
        """A trial is to end behind a checkpoint: as pruned where it is not worth another epoch."""
        self._verdicts[name] = verdict

    def stop(self) -> None:
        """All trials are to stop behind a checkpoint."""
        self._stopping = True

    def verdict(self, name: str) -> Ending | None:
        """Whether a trial is to end, and as what."""
        return self._verdicts.get(name) or ("stopped" if self._stopping else None)

    def show(self, name: str, text: str) -> Ending | None:
        """Where a trial stands, in words; its verdict."""
        self._texts[name] = text
        return self.verdict(name)

    def tell(self, name: str, reason: str) -> None:
        """Why a trial failed."""
        self._reasons[name] = reason

    def take_reason(self, name: str) -> str:
        """Why a trial that has ended failed; empty if it did not say. Forgets the trial."""
        self._texts.pop(name, None)
        self._orders.pop(name, None)
        return self._reasons.pop(name, "")

    def texts(self) -> Mapping[str, str]:
        """Where trials stand, by name."""
        return dict(self._texts)
