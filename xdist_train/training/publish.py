"""What rank 0 puts into the run folder: the best model, the history, the evidence. Each object appears whole.

Every function returns the keys that may be read from now on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cluster import disk
from cluster.runs import METRICS, TENSORBOARD, RunFolder
from xdist_train.evidence.evaluation import build_evidence
from xdist_train.evidence.inference import Answers
from xdist_train.models.export import DESCRIPTION_KEY, MODEL_FOLDER, WEIGHTS_KEY, Selection, save_model

if TYPE_CHECKING:
    from xdist_train.training.assembly import Assembly

__all__ = ["publish_evaluation", "publish_history", "publish_model"]

_EVENTS = "events.out.tfevents.0000000000.run"


def publish_model(
    folder: RunFolder, tensors: Mapping[str, Tensor], assembly: Assembly, selection: Selection
) -> list[str]:
    """The best weights so far and their description under `model/`."""
    folder.check_owner()
    save_model(folder.store, tensors, assembly.describe(selection))
    return [f"{MODEL_FOLDER}/{key}" for key in (WEIGHTS_KEY, DESCRIPTION_KEY)]


def publish_history(folder: RunFolder, history: list[dict[str, Any]]) -> list[str]:
    """metrics.jsonl, a row a line, and TensorBoard's event file, both made anew from the whole history."""
    folder.publish(METRICS, "".join(f"{json.dumps(_without_nan(row))}\n" for row in history).encode())
    folder.publish(f"{TENSORBOARD}/{_EVENTS}", _event_file(history))
    return [METRICS, f"{TENSORBOARD}/{_EVENTS}"]


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a figure that is not defined (auroc of a class that val lacks) is null."""
    return {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in row.items()}


def publish_evaluation(folder: RunFolder, assembly: Assembly, split: str, answers: Answers) -> list[str]:
    """Figures and predictions of a split."""
    evidence = build_evidence(
        assembly.dataset,
        assembly.splits[split],
        answers,
        prior=assembly.prior,
        resamples=assembly.config.evaluate.bootstrap,
    )
    objects = evidence.objects(split)
    for key, data in objects.items():
        folder.publish(key, data)
    return list(objects)


def _event_file(history: list[dict[str, Any]]) -> bytes:
    """TensorBoard events of the epochs' and steps' figures, as one file."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        with tempfile.TemporaryDirectory() as folder:
            with SummaryWriter(folder) as writer:
                for row in history:
                    for name, value in row.items():
                        if isinstance(value, float) and np.isfinite(value):
                            writer.add_scalar(f"{row['kind']}/{name}", value, row["step"], walltime=row.get("time"))
            (path,) = Path(folder).iterdir()
            return path.read_bytes()
    except OSError as error:
        place = Path(tempfile.gettempdir())
        raise disk.failure(error, f"{place}: cannot write events ({disk.reason(error, place)}).") from error
