"""A run folder: every key in it, who may write to it, and `run.json`, which says what may be read.

A search's folder is owned in the same way; its record is `search.json`.

Attempts are claimed by conditional write; the driver of the highest owns the run, and an older one may
publish nothing. Knows keys, owners and status, nothing of models or metrics.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.config import Layer, parse_written
from cluster.errors import InputError, StoreError
from cluster.store import Store, open_store

__all__ = [
    "CAM_IMAGES",
    "CAM_MAPS",
    "CAM_OVERLAYS",
    "CAM_SUMMARY",
    "CHECKPOINTS",
    "CONFIG",
    "METRICS",
    "REPORT",
    "RUN",
    "SEARCH",
    "TENSORBOARD",
    "RunFolder",
    "StaleDriverError",
    "add_object",
    "cam_folder",
    "cam_part_key",
    "evaluation_key",
    "is_silent",
    "list_runs",
    "open_run",
    "predictions_key",
    "read_config",
    "read_history",
    "read_record",
    "require_ended",
]

RUN, CONFIG, METRICS, REPORT = "run.json", "config.yaml", "metrics.jsonl", "report.html"
ONNX, CARD = "model/model.onnx", "model/README.md"
SEARCH = "search.json"
ATTEMPTS, CHECKPOINTS, TENSORBOARD = "attempts", "checkpoints", "tensorboard"
RUN_SCHEMA = 1
_CONFIG_LIMIT_BYTES = 1 << 20
_HISTORY_LIMIT_BYTES = 256 << 20  # a million rows
_SILENT_S = 60.0  # six missed heartbeats

MADE_LATER = frozenset({REPORT, ONNX, CARD})
"""What commands make of a run that has ended: not to be read any more once it goes on."""


def evaluation_key(split: str) -> str:
    """Figures of a split."""
    return f"evaluation/{split}.json"


def predictions_key(split: str) -> str:
    """Predictions of a split."""
    return f"predictions/{split}.parquet"


CAM_SUMMARY, CAM_MAPS, CAM_IMAGES, CAM_OVERLAYS = "cam.json", "maps", "images", "overlays"
"""Below `cam_folder`: what there is to say, written last; maps; plain pictures, and the same with the map."""


def cam_folder(split: str, name: str) -> str:
    """Class activation maps of a split by one method at one layer."""
    return f"cam/{split}/{name}"


def cam_part_key(number: int) -> str:
    """Maps of a stretch of the split, below `cam_folder`."""
    return f"{CAM_MAPS}/part-{number:05d}.parquet"


class StaleDriverError(StoreError):
    """A newer start owns the run; this one may write nothing more into it."""


@dataclass(frozen=True)
class RunFolder:
    """One run, or one search, in a store, written on behalf of one driver.

    `driver` is that driver's unique name; workers that publish for it carry the same.
    """

    store: Store
    driver: str
    record: str = RUN
    """Key of the object that describes it."""

    @property
    def name(self) -> str:
        """The run's name: its folder."""
        return self.store.name

    def exists(self) -> bool:
        """Whether any start ever claimed this run."""
        return self.store.exists(self.record) or bool(self._attempts())

    def claim(self) -> int:
        """Become the owner: write the next attempt; its number, from 1.

        When two drivers race, each attempt number goes to one of them and the later number owns.
        """
        number = 0
        while not number:
            number = self._claim_number(max(self._attempts(), default=0) + 1)
        return number

    def claim_new(self) -> int:
        """Become the owner of a run that nobody has started: 1; 0 if somebody was first."""
        return 0 if self.exists() else self._claim_number(1)

    def _claim_number(self, number: int) -> int:
        text = json.dumps({"driver": self.driver, "host": socket.gethostname(), "started": time.time()})
        return number if self.store.create(f"{ATTEMPTS}/{number:04d}.json", text.encode()) else 0

    def check_owner(self) -> None:
        """Pass if this driver made the newest attempt.

        Raises:
            StaleDriverError: another driver has taken the run over.
        """
        newest = max(self._attempts(), default=0)
        if not newest:
            return
        owner = self.store.read_json(f"{ATTEMPTS}/{newest:04d}.json")
        if owner["driver"] != self.driver:
            what = self.record.removesuffix(".json")
            raise StaleDriverError(
                f"{what} {self.name!r} was taken over by attempt {newest} on host {owner['host']}; "
                "this start no longer owns it and has published nothing since."
            )

    def publish(self, key: str, data: bytes) -> None:
        """Replace one object of the run, whole, if this driver still owns it."""
        self.check_owner()
        self.store.write(key, data)

    def publish_json(self, key: str, value: Any) -> None:
        """Replace one object by JSON text."""
        self.publish(key, (json.dumps(value, indent=2) + "\n").encode())

    def read_record(self) -> dict[str, Any]:
        """`run.json`; empty if the run was claimed but not described yet.

        Raises:
            InputError: it is not what a run writes.
        """
        return read_record(self.store, self.record) if self.store.exists(self.record) else {}

    def _attempts(self) -> list[int]:
        return [int(name[:4]) for name in self.store.list(ATTEMPTS) if name[:4].isdigit()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _is_selection(value: Any) -> bool:
    """What was selected, or that nothing was."""
    return value is None or (isinstance(value, dict) and {"epoch", "metric", "value"} <= value.keys())


_ALWAYS_THERE: dict[str, Callable[[Any], bool]] = {
    "status": lambda value: isinstance(value, str),
    "heartbeat": _is_number,
    "attempts": lambda value: bool(value) and _is_list_of(dict)(value),
    "complete": _is_list_of(str),
}
_WHERE_THERE: dict[str, Callable[[Any], bool]] = {
    "selected": _is_selection,
    "seconds": lambda value: _is_number(value) or (isinstance(value, dict) and all(map(_is_number, value.values()))),
    "epochs": _is_number,
    "worker_seconds": _is_number,
    "test_evaluations": _is_number,
    "trials": _is_list_of(dict),
    "parts": _is_list_of(dict),
}


def read_record(store: Store, key: str = RUN) -> dict[str, Any]:
    """`run.json` or `search.json` of a folder.

    Raises:
        InputError: it is not what a run writes.
    """
    record = store.read_json(key)
    found = record if isinstance(record, dict) else {}
    wrong = [name for name, fits in _ALWAYS_THERE.items() if not fits(found.get(name))]
    wrong += [name for name, fits in _WHERE_THERE.items() if name in found and not fits(found[name])]
    if wrong:
        raise InputError(
            f"{store.locate(key)} is not what a run writes ({', '.join(wrong)} missing or of another kind). Copy the "
            "run folder again from where it was trained."
        )
    return found


def is_silent(record: dict[str, Any]) -> bool:
    """Whether `run.json` says running although its driver has not been heard of for a while."""
    return bool(record["status"] == "running" and time.time() - record["heartbeat"] > _SILENT_S)


def require_ended(record: dict[str, Any], uri: str) -> None:
    """Pass if no driver owns the folder of a run any more.

    Raises:
        InputError: the run is going on.
    """
    if record["status"] == "running" and not is_silent(record):
        raise InputError(
            f"{uri!r} is still running, and its folder is its driver's until it ends (see `xdist-train runs`). Wait "
            "for that, or write elsewhere: --out FILE."
        )


def add_object(run: Store, key: str, data: bytes) -> None:
    """Put an object into the folder of a run that has ended, whole, and list it as one that may be read."""
    run.write(key, data)
    record = read_record(run)
    if key not in record["complete"]:
        run.write_json(RUN, {**record, "complete": sorted({*record["complete"], key})})


def open_run(uri: str) -> RunFolder:
    """An existing run for reading.

    Raises:
        InputError: no run there.
    """
    store = open_store(uri)
    if not store.exists(RUN):
        raise InputError(f"{uri!r} is no run folder (no {RUN}). `xdist-train runs` lists the runs of a store.")
    return RunFolder(store, driver="")


def read_config(run: Store) -> Layer:
    """`config.yaml` of a run folder.

    Raises:
        InputError: it is not what a run writes.
    """
    return parse_written(run.read(CONFIG, _CONFIG_LIMIT_BYTES), run.locate(CONFIG))


def read_history(run: Store) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl` of a run folder; none where there is none.

    Raises:
        InputError: it is not what a run writes.
    """
    if not run.exists(METRICS):
        return []
    data = run.read(METRICS, _HISTORY_LIMIT_BYTES)
    try:
        return [json.loads(line) for line in data.splitlines()]
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{run.locate(METRICS)} cannot be read ({error}). Copy the run folder again from where it was trained."
        ) from None


def list_runs(uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, run.json or search.json) of each run and search directly under a storage URI, by name.

    Of one whose record is not what a run writes, that is its status, and `error` says why.
    """
    store = open_store(uri)
    for name in store.list():
        child = store.child(name)
        record = next((record for record in (RUN, SEARCH) if child.exists(record)), None)
        if record:
            try:
                yield name, read_record(child, record)
            except InputError as error:
                yield name, {"status": "unreadable", "error": str(error)}
