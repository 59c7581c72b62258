"""What a report says, read from a run folder and its data set. Draws nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.config import load_config
from cluster.errors import InputError, StoreError
from cluster.runs import CAM_SUMMARY, CONFIG, open_run, read_config, read_history
from cluster.store import Store
from dataloading.dataset import DatasetInfo, open_dataset
from xdist_train.config import Config
from xdist_train.evidence.answers import SplitAnswers, patients_of, read_answers

__all__ = ["CamSummary", "Names", "RunEvidence", "read_evidence"]

_SPLITS = ("test", "val")


@dataclass(frozen=True)
class CamSummary:
    """A CAM job of the run: its `cam.json`, and where the keys in it lie."""

    store: Store
    values: dict[str, Any]


@dataclass(frozen=True)
class Names:
    """How images and patients are called on a page.

    File names of medical images tell of patients, and a hash of a short number is undone in a second. So a patient has
    a number drawn for the data set: its place in an order that the manifest's digest seeds, which nobody has who has
    not the manifest. Reports of one data set agree.
    """

    patients: Mapping[str, int]
    real: bool

    @classmethod
    def of(cls, patients: list[str], secret: str, *, real: bool) -> Names:
        """Numbers from 1 for all patients of a data set; `secret` is its manifest's digest."""
        known = sorted(set(patients))
        seed = int.from_bytes(hashlib.sha256(f"patients:{secret}".encode()).digest()[:16])
        order = np.random.default_rng(seed).permutation(len(known))
        return cls({name: int(place) + 1 for name, place in zip(known, order, strict=True)}, real)

    def image(self, image_id: int, source: str, patient: str | None) -> str:
        """What an image is called."""
        if self.real:
            return f"{source} (patient {patient})" if patient is not None else source
        number = self.patients.get(patient) if patient is not None else None
        return f"image {image_id}" + (f", patient {number}" if number else "")


@dataclass(frozen=True)
class RunEvidence:
    """A run as its report tells it."""

    store: Store
    record: dict[str, Any]
    config: Config
    config_text: str
    history: list[dict[str, Any]]
    """Rows of `metrics.jsonl`."""
    answers: Mapping[str, SplitAnswers]
    """By split: test, val."""
    patients: Mapping[str, list[str] | None]
    """Of each image, by split; None where the data set is gone."""
    info: DatasetInfo | None
    """None where the data set is gone."""
    cams: list[CamSummary]
    names: Names

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Of a repetition, whose figures are pooled over them; none of a single run."""
        return list(self.record.get("parts", []))

    @property
    def main(self) -> SplitAnswers:
        """The split that the headline is of: test where it was evaluated, else val."""
        return next(iter(self.answers.values()))


def read_evidence(uri: str, *, real_names: bool) -> RunEvidence:
    """All that a report needs.

    Raises:
        InputError: no run, no figures yet, or something in its folder that cannot be read.
    """
    folder = open_run(uri)
    store, record = folder.store, folder.read_record()
    config = load_config(Config, [read_config(store)])
    config_text = store.read(CONFIG).decode()
    splits = [split for split in _SPLITS if f"evaluation/{split}.json" in record["complete"]]
    if not splits:
        raise InputError(
            f"{uri!r} has no figures yet (the run is {record['status']}), so there is nothing to report. Wait for its "
            f"end, or evaluate it: `xdist-train evaluate {uri} --split val`."
        )
    answers = {split: read_answers(store, split) for split in splits}
    info = _info(config.data.uri, record["fingerprint"])
    # Of the whole data set, so that reports of other splits have the same numbers.
    everyone = patients_of(config.data.uri, record["fingerprint"], np.arange(info.num_images)) if info else None
    patients = {split: everyone and [everyone[row] for row in mine.ids] for split, mine in answers.items()}
    return RunEvidence(
        store=store,
        record=record,
        config=config,
        config_text=config_text,
        history=read_history(store),
        answers=answers,
        patients=patients,
        info=info,
        cams=list(_cams(store, record)),
        names=Names.of(everyone or [], info.manifest_sha256 if info else "", real=real_names),
    )


def _info(uri: str, fingerprint: str) -> DatasetInfo | None:
    try:
        info = open_dataset(uri).info
    except (InputError, StoreError):
        return None
    return info if info.fingerprint == fingerprint else None


def _cams(store: Store, record: dict[str, Any]) -> Iterator[CamSummary]:
    """Jobs on the run's own data: ids of another data set are other images."""
    for key in sorted(record["complete"]):
        if key.endswith(f"/{CAM_SUMMARY}"):
            values = store.read_json(key)
            if values["fingerprint"] == record["fingerprint"]:
                yield CamSummary(store, values)
