"""What each Ray Tune trial runs: one launch, guided from the search's driver by way of the board."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from rich.console import Console

from cluster.errors import NoRoomError, RunFailedError, StoppedError, StoreError, XdistError
from cluster.store import open_store
from tune_spaces.board import EPOCH, FIGURE, TRIAL
from xdist_train.config import Config
from xdist_train.training.launch import launch
from xdist_train.training.live import phase_text, progress_text
from xdist_train.training.messages import Ending, MonitorView

__all__ = ["TrialOrder", "run_trial"]


@dataclass(frozen=True, kw_only=True)
class TrialOrder:
    """What the driver tells a trial."""

    name: str
    """Its run folder's."""
    config: Config
    place: str
    """URI of the folder of its run folder."""
    parent: str
    """The search's name."""
    command: str
    """What the user typed."""


def run_trial(values: dict[str, Any], *, board: Any) -> None:
    """Tune's entry point. What a launch fails with goes to the board: only a lost process is for Tune to try again."""
    order: TrialOrder = ray.get(board.order.remote(values[TRIAL]))
    try:
        launch(
            order.config,
            command=order.command,
            console=Console(),
            place=open_store(order.place),
            parent=order.parent,
            guide=_Guide(order, board),
        )
    except StoppedError:
        return  # its run.json says so
    except XdistError as error:
        ray.get(board.tell.remote(order.name, f"{_kind(error)}: {error}"))
    except ray.exceptions.RayError as error:  # its monitor went, with the node or for want of memory
        ray.get(board.tell.remote(order.name, f"lost_workers: {' '.join(str(error).split())[:300]}"))
    except Exception as error:  # noqa: BLE001 - the trial's entry point; the search goes on with another
        traceback.print_exc()
        ray.get(board.tell.remote(order.name, f"defect: {type(error).__name__}: {error}"))


def _kind(error: XdistError) -> str:
    if isinstance(error, RunFailedError):
        return error.kind
    if isinstance(error, NoRoomError):  # the search had checked it: a node is away
        return "no_room"
    return "storage" if isinstance(error, StoreError) else "bad_input"


class _Guide:
    """Epochs to Tune, positions to the board; and from there, whether to go on."""

    def __init__(self, order: TrialOrder, board: Any) -> None:
        self._order, self._board = order, board
        self._reported = 0
        self._verdict: Ending | None = None

    def look(self, view: MonitorView) -> Ending | None:
        """Hand on what is new; what the search wants."""
        for row in view.epoch_rows[self._reported :]:
            if self._verdict:
                break
            self._report(row)
        if not self._verdict:
            self._verdict = ray.get(self._board.show.remote(self._order.name, _text(view)))
        return self._verdict

    def _report(self, row: dict[str, Any]) -> None:
        """Waits until the driver has judged it."""
        self._reported += 1
        figure = row.get(f"val_{self._order.config.train.metric}")
        tune.report({EPOCH: row["epoch"] + 1, FIGURE: figure, "train_loss": row["train_loss"]})
        self._verdict = ray.get(self._board.verdict.remote(self._order.name))


def _text(view: MonitorView) -> str:
    return progress_text(view.progress, None) if view.progress and view.phase == "training" else phase_text(view)
