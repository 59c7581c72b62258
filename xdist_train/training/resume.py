"""Where a group of workers goes on: the newest checkpoint that all of its ranks can read, the same on each.

Ray's own way to read one (`Checkpoint.as_directory`) writes the files anew while another process of the node may read
them: a rank would take it for damaged and go back further than the others. Here a node's first rank brings the files,
and nobody goes on before all have read them. Knows no Ray.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from cluster.world import World
from xdist_train.training.checkpoint import DamagedCheckpointError, Position, checkpoint_name, load_checkpoint
from xdist_train.training.collectives import gather_rows, gather_values
from xdist_train.training.learner import Learner
from xdist_train.training.state import TrainState

__all__ = ["Bring", "resume"]

logger = logging.getLogger(__name__)

Bring = Callable[[Path], object]
"""Puts a checkpoint's files into an empty folder."""


def resume(reported: Mapping[Position, Bring], learner: Learner, world: World, group: str) -> TrainState:
    """Load the newest checkpoint that every rank verifies; the start where there is none. Collective.

    Args:
        reported: the checkpoints that this rank knows of.
        group: names this group of workers, and no other on the node.

    Raises:
        DamagedCheckpointError: there are checkpoints, and none can be read by all.
    """
    known = _known_to_all(reported, learner, world)
    for number, position in enumerate(known):
        with _brought(reported[position], f"{group}-{checkpoint_name(position)}", learner, world) as folder:
            state, reason = _load(folder, learner)
            if _all_agree(state is not None, learner, world) and state is not None:
                return state
        if world.is_first and number + 1 < len(known):
            names = [
                checkpoint_name(position),
                reason or "another rank cannot read it",
                checkpoint_name(known[number + 1]),
            ]
            logger.warning("checkpoint %s is passed over (%s); going back to %s", *names)
    if known:
        raise DamagedCheckpointError(
            f"none of the {len(known)} checkpoints of this run can be read. Start again under another run.name."
        )
    return TrainState()


def _known_to_all(reported: Mapping[Position, Bring], learner: Learner, world: World) -> list[Position]:
    """Newest first."""
    rows = [[position.epoch, position.step, position.attempt] for position in reported]
    mine = torch.tensor(rows, dtype=torch.int64, device=learner.device).reshape(-1, 3)
    found = [Position(*row) for row in gather_rows(mine, world).tolist()]
    return sorted({position for position in found if found.count(position) == world.size}, reverse=True)


@contextmanager
def _brought(bring: Bring, name: str, learner: Learner, world: World) -> Iterator[Path]:
    """The files in a folder of this node, until all ranks have left the block."""
    folder = Path(tempfile.gettempdir()) / f"xdist-resume-{name}"
    try:
        if world.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)
            bring(folder)
        _all_agree(True, learner, world)
        yield folder
    finally:
        if world.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _load(folder: Path, learner: Learner) -> tuple[TrainState | None, str]:
    try:
        return load_checkpoint(folder, learner), ""
    except DamagedCheckpointError as error:
        return None, str(error)


def _all_agree(yes: bool, learner: Learner, world: World) -> bool:
    """Whether all ranks say so; none is told before all have said it."""
    said = torch.tensor([float(yes)], device=learner.device)
    return bool(gather_values(said, world).all())
