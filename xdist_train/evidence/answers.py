"""What a run left of a split, read back: its figures, its predictions and whose images they are of.

Knows the run folder's form; computes nothing.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.errors import InputError, StoreError
from cluster.runs import evaluation_key, predictions_key, read_record
from cluster.store import Store
from dataloading.dataset import open_dataset
from xdist_train.evidence.metrics import Scores

__all__ = ["SplitAnswers", "patients_of", "read_answers"]


@dataclass(frozen=True, eq=False)
class SplitAnswers:
    """A split as a run answered it, one image a row.

    report: `evaluation/<split>.json`. ids: int64 [n], rows of the data set's manifest. labels: [n] in 0..K-1.
    probabilities: float64 [n, K].
    """

    split: str
    report: dict[str, Any]
    classes: tuple[str, ...]
    ids: NDArray[np.int64]
    sources: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def scores(self, patients: Any = None) -> Scores:
        """For figures; without patients each image stands for itself."""
        return Scores.of(self.labels, self.probabilities, patients)


def read_answers(run: Store, split: str) -> SplitAnswers:
    """Figures and predictions of a split.

    Raises:
        InputError: not evaluated yet, or what is there cannot be read.
    """
    record = read_record(run)
    if evaluation_key(split) not in record["complete"]:
        done = [name.removeprefix("evaluation/").removesuffix(".json") for name in record["complete"]]
        there = ", ".join(name for name in done if evaluation_key(name) in record["complete"]) or "none"
        raise InputError(
            f"{run.uri!r} has no figures of {split} (evaluated: {there}; the run is {record['status']}). "
            f"Make them by `xdist-train evaluate {run.uri} --split {split}` once the run has ended."
        )
    report, table = run.read_json(evaluation_key(split)), _read_table(run, predictions_key(split))
    classes = tuple(report["classes"])
    index = {name: number for number, name in enumerate(classes)}
    try:
        probabilities = np.stack([table[f"probability_{name}"].to_numpy() for name in classes], axis=1)
        labels = np.array([index[name] for name in table["label"].to_pylist()], np.int64)
        ids, sources = table["id"].to_numpy(), tuple(table["source"].to_pylist())
    except KeyError as error:
        raise InputError(_damaged(run, predictions_key(split), f"it has no {error}")) from None
    return SplitAnswers(split, report, classes, ids, sources, labels, probabilities)


def patients_of(data_uri: str, fingerprint: str, ids: NDArray[np.int64]) -> list[str] | None:
    """The patient of each image; None where the data set is not there any more, or is another one now."""
    try:
        dataset = open_dataset(data_uri)
        if dataset.info.fingerprint != fingerprint:
            return None
        patients: list[str] = dataset.read_manifest(["patient"]).take(pa.array(ids))["patient"].to_pylist()
    except (InputError, StoreError):
        return None
    return patients


def _read_table(run: Store, key: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(run.read(key)))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(_damaged(run, key, " ".join(str(error).split())[:200])) from None


def _damaged(run: Store, key: str, why: str) -> str:
    return f"{run.locate(key)} cannot be read ({why}). Make it again by `xdist-train evaluate {run.uri}`."
