"""The evidence of one split as values: `evaluation/<split>.json` and the predictions table.

Knows neither where labels and probabilities came from nor where the results go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.errors import RunFailedError
from xdist_train.evidence.metrics import Scores, confusion_matrix, intervals, point_figures
from xdist_train.models.prior import PriorShift

__all__ = ["PriorShift", "evaluation_report", "predictions_table"]

_CORRECTED = ("accuracy", "balanced_accuracy", "ece")
_NOTE = (
    "sampler.alpha or loss.class_weights moved the classes' shares in training: the probabilities, and so "
    "the figures above, are for the shares `learned`. `corrected` has figures for the shares `train`."
)


def evaluation_report(
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    patients: Sequence[str],
    classes: Sequence[str],
    *,
    prior: PriorShift | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The content of `evaluation/<split>.json`.

    Args:
        labels: [n] in 0..K-1.
        probabilities: [n, K].
        patients: [n]; the unit of the bootstrap.
        classes: K names.
        prior: what training did to the classes' shares; None if nothing.
        resamples: of patients, for the 95 % intervals.
        seed: of the resamples.

    Raises:
        RunFailedError: the model gave numbers that are not finite.
    """
    if not np.isfinite(probabilities).all():
        bad = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise RunFailedError(
            "non_finite_output",
            f"the model's output is not a finite number for {bad} of {len(labels)} images. Its weights are "
            "broken; train again with a lower optim.lr, train.clip_norm, or train.precision=float32.",
        )
    scores = Scores.of(labels, probabilities, patients)
    return {
        **intervals(scores, classes, resamples=resamples, seed=seed),
        "confusion_matrix": confusion_matrix(scores).tolist(),
        "classes": list(classes),
        "n_images": len(scores.labels),
        "n_patients": scores.num_patients,
        "interval": {"level": 0.95, "unit": "patient", "resamples": resamples, "seed": seed},
        "prior": _prior_note(prior, scores, classes),
    }


def predictions_table(
    ids: Sequence[int] | NDArray[np.integer],
    sources: Sequence[str],
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    classes: Sequence[str],
) -> pa.Table:
    """One row an image: id, source, label and predicted (class names), `probability_<class>` (float64)."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    names = np.asarray(classes, dtype=object)
    columns: dict[str, pa.Array] = {
        "id": pa.array(ids, pa.int64()),
        "source": pa.array(sources, pa.string()),
        "label": pa.array(names[np.asarray(labels)], pa.string()),
        "predicted": pa.array(names[probabilities.argmax(axis=1)], pa.string()),
    }
    for index, name in enumerate(classes):
        columns[f"probability_{name}"] = pa.array(probabilities[:, index], pa.float64())
    return pa.table(columns)


def _prior_note(prior: PriorShift | None, scores: Scores, classes: Sequence[str]) -> dict[str, Any] | None:
    """What the shares of the classes were, and the figures under the data's own prior."""
    if prior is None:
        return None
    corrected = point_figures(replace(scores, probabilities=prior.correct(scores.probabilities)))
    shares = {"train": prior.train, "drawn": prior.drawn, "learned": prior.learned}
    return {
        "note": _NOTE,
        **{name: dict(zip(classes, values, strict=True)) for name, values in shares.items()},
        "corrected": {name: corrected[name] for name in _CORRECTED},
    }
