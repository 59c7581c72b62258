"""Prediction over folders and object storage into one table, which appears whole or not at all.

A file that cannot be read is a row with its reason. Columns: `source`; `predicted`, `probability_<class>`; with
val's figures at hand `calibrated_<class>`; `decision` (a class, or `deferred`); `reason`, null where all went well.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from numpy.typing import NDArray

from cluster.errors import InputError, MissingObjectError, StoreRefusedError
from cluster.runs import RUN, evaluation_key, read_record
from cluster.store import Store, open_parent, open_store
from dataloading.loading.executor import UndecodableError
from dataloading.packing.images import FILE_LIMIT_BYTES, IMAGE_SUFFIXES
from dataloading.packing.pool import map_in_order, usable_cores
from dataloading.packing.rejection import RejectedError
from xdist_train.evidence.answers import read_answers
from xdist_train.evidence.classifier import BATCH_SIZE, Classifier, Picture, read_picture
from xdist_train.evidence.decisions import DEFERRED, Rule, Wish, learn_rule
from xdist_train.models.export import ModelDescription, load_model, require_same_classes

__all__ = ["BatchSummary", "find_images", "predict_batch"]

_IN_PROCESS = 4 * BATCH_SIZE  # images that are read sooner than processes start

Progress = Callable[[str, int, int], None]


class Source(NamedTuple):
    """An image file: what it is called, and where it lies."""

    name: str
    store: Store
    key: str


class BatchSummary(NamedTuple):
    """What was done."""

    where: str
    images: int
    unreadable: int
    deferred: int
    temperature: float | None
    threshold: float | None
    """Of the class that was looked for."""


class _Row(NamedTuple):
    probabilities: NDArray[np.float64] | None
    reason: str | None


def predict_batch(
    model_uri: str,
    inputs: Sequence[str],
    out: str,
    *,
    wish: Wish | None = None,
    defer_below: float = 0.0,
    progress: Progress = lambda *_: None,
) -> BatchSummary:
    """Classify all images of files, folders and `s3://` URIs.

    Args:
        model_uri: a run folder or a bare `model` folder; the latter knows no val, so it can only predict.
        inputs: as `find_images`.
        out: path or URI that ends in .csv or .parquet.
        wish: the class to be found with a sensitivity.
        defer_below: confidence below which a person is to decide.

    Raises:
        InputError: no model, no images, no figures of val where they are needed, another ending. Nothing was written.
    """
    target, key = open_parent(out)
    write = _WRITERS.get(PurePosixPath(key).suffix)
    if write is None:
        raise InputError(f"--out {out!r}: endings are {', '.join(_WRITERS)}.")
    model, description = load_model(model_uri)
    rule = _rule(model_uri, description, wish, defer_below)
    sources = find_images(inputs)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = Classifier(model.to(device), description, device)
    rows: list[_Row] = []
    try:
        for pictures in _read_ahead(sources):
            rows += _answer(classifier, pictures)
            progress("images", len(rows), len(sources))
    finally:
        classifier.close()
    table = _table([source.name for source in sources], rows, description.classes, rule)
    target.write(key, write(table))
    deferred = table["decision"].to_pylist().count(DEFERRED)
    unreadable = sum(row.probabilities is None for row in rows)
    threshold = None if rule.index is None else rule.threshold
    return BatchSummary(target.locate(key), len(rows), unreadable, deferred, rule.temperature, threshold)


def find_images(inputs: Sequence[str]) -> list[Source]:
    """Files as they are named, and below folders all with an image's ending, by name; hidden ones do not exist.

    Raises:
        InputError: an input that is not there, or none with images.
    """
    return [source for uri in inputs for source in _images_of(uri)]


def _images_of(uri: str) -> list[Source]:
    if not _is_folder(uri):
        parent, key = open_parent(uri)
        if parent.info(key) is not None:
            return [Source(uri, parent, key)]
    store = open_store(uri)
    keys = sorted(key for key in store.walk() if _is_image(PurePosixPath(key)))
    if not keys:
        raise InputError(
            f"predict: {uri!r} is no file, and no folder with images ({', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    return [Source(store.locate(key), store, key) for key in keys]


def _is_folder(uri: str) -> bool:
    """By its form: a slash at the end, a place above, a bucket."""
    bucket = uri.startswith("s3://") and "/" not in uri.removeprefix("s3://")
    return bucket or uri.rpartition("/")[2] in ("", ".", "..")


def _is_image(path: PurePosixPath) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _rule(uri: str, description: ModelDescription, wish: Wish | None, defer_below: float) -> Rule:
    run = open_store(uri)
    if run.exists(RUN) and (wish or defer_below or evaluation_key("val") in read_record(run)["complete"]):
        val = read_answers(run, "val")
        require_same_classes(description, val.classes, run.locate(evaluation_key("val")))
        return learn_rule(val, wish, defer_below)
    if wish or defer_below:
        raise InputError(
            f"{uri!r} is a bare model folder: --find and --defer-below need val's figures of its run folder."
        )
    return Rule()


def _read_ahead(sources: Sequence[Source]) -> Iterator[list[Picture | str]]:
    """What was read, a batch at a time, in order: by a process a core while the model is at work, where that pays."""
    batches = [sources[start : start + BATCH_SIZE] for start in range(0, len(sources), BATCH_SIZE)]
    if len(sources) <= _IN_PROCESS:
        return map(_read_all, batches)
    return map_in_order(_read_all, batches, usable_cores())


def _read_all(sources: Sequence[Source]) -> list[Picture | str]:
    return [_read(source) for source in sources]


def _answer(classifier: Classifier, read: Sequence[Picture | str]) -> list[_Row]:
    rows = [_Row(None, found if isinstance(found, str) else None) for found in read]
    good = [(place, found) for place, found in enumerate(read) if isinstance(found, Picture)]
    while good:
        try:
            answers = classifier.probabilities([picture for _, picture in good])
        except UndecodableError as error:
            place, _ = good.pop(error.position)
            rows[place] = _Row(None, error.reason)
            continue
        for (place, _), answer in zip(good, answers, strict=True):
            rows[place] = _Row(answer, None)
        break
    return rows


def _read(source: Source) -> Picture | str:
    """The picture, or why there is none. A storage that is away is no matter of one file, and raised."""
    try:
        return read_picture(source.store.read(source.key, FILE_LIMIT_BYTES))
    except (RejectedError, InputError, MissingObjectError, StoreRefusedError) as error:
        return str(error)


def _table(names: Sequence[str], rows: Sequence[_Row], classes: Sequence[str], rule: Rule) -> pa.Table:
    good = np.array([row.probabilities is not None for row in rows])
    found = [row.probabilities for row in rows if row.probabilities is not None]
    probabilities = np.array(found).reshape(-1, len(classes))
    spoken = np.array([*classes, DEFERRED], dtype=object)  # -1 is the last
    columns = {"source": pa.array(names), "predicted": _spread(spoken[probabilities.argmax(axis=1)], good)}
    calibrated = rule.calibrated(probabilities)
    for title, values in (("probability", probabilities), ("calibrated", calibrated)):
        if values is not None:
            columns |= {f"{title}_{name}": _spread(values[:, index], good) for index, name in enumerate(classes)}
    columns["decision"] = _spread(spoken[rule.decide(probabilities)], good)
    columns["reason"] = pa.array([row.reason for row in rows], pa.string())
    return pa.table(columns)


def _spread(values: NDArray[np.object_] | NDArray[np.float64], good: NDArray[np.bool_]) -> pa.Array:
    """Values of the good rows among nulls."""
    kind = pa.string() if values.dtype == object else pa.float64()
    left: Iterator[object] = iter(values.tolist())
    return pa.array([next(left) if well else None for well in good], kind)


def _csv(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    return buffer.getvalue()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


_WRITERS = {".csv": _csv, ".parquet": _parquet}
