"""A trial for TensorBoard: its hyperparameters, its figure, and the metric by epoch, as one event file.

`tensorboard --logdir <search>/tensorboard` shows all trials in its HParams page; how each one trained in full is in
`<search>/trials`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from tune_spaces.domains import label
from tune_spaces.leaderboard import TrialRow

__all__ = ["trial_events"]


def trial_events(row: TrialRow, metric: str) -> bytes:
    """The event file of a trial that has ended."""
    values = {
        key: value if isinstance(value, bool | int | float | str) else label(value) for key, value in row.values.items()
    }
    figures = {f"val/{metric}": row.figure} if row.figure is not None else {}
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for summary in hparams({**values, "status": row.status}, figures):
                writer._get_file_writer().add_summary(summary)
            for epochs, figure in sorted(row.curve.items()):
                writer.add_scalar(f"{metric}_by_epoch", figure, epochs)
            for tag, figure in figures.items():
                writer.add_scalar(tag, figure, row.epochs)
        (path,) = Path(folder).iterdir()
        return path.read_bytes()
