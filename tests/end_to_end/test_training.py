"""The training job on a real Ray cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.errors import InputError, RunFailedError
from tests.end_to_end.small import Train
from xdist_train.cli import main
from xdist_train.training.launch import LaunchResult

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def whole(train: Train) -> LaunchResult:
    """Two epochs on two workers, with a checkpoint after every second step."""
    return train("whole", "checkpoint.every_steps=2")


def _record(result: LaunchResult) -> dict[str, Any]:
    return json.loads((Path(result.run_uri) / "run.json").read_text())


def _checkpoints(result: LaunchResult) -> list[Path]:
    return sorted(path for path in (Path(result.run_uri) / "checkpoints").iterdir() if path.is_dir())


def _tensors(result: LaunchResult) -> list[bytes]:
    """Model and optimiser of the newest checkpoint."""
    return [(_checkpoints(result)[-1] / name).read_bytes() for name in ("model.safetensors", "optim.safetensors")]


def test_a_run_folder_holds_what_run_json_lists(whole: LaunchResult) -> None:
    """Everything under `complete` is there and reads whole; the newest three checkpoints are kept."""
    folder, record = Path(whole.run_uri), _record(whole)
    assert tuple(record[key] for key in ("status", "attempt", "group_starts", "epochs")) == ("finished", 1, 1, 2)
    assert {"config.yaml", "metrics.jsonl", "model/model.json", "evaluation/test.json"} <= set(record["complete"])
    assert [key for key in record["complete"] if not (folder / key).is_file()] == []
    assert [p.name for p in _checkpoints(whole)] == ["e001-s000000-a01", "e001-s000002-a01", "e002-s000000-a01"]
    kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["step", "epoch"] * 2
    assert pq.read_table(folder / "predictions/test.parquet").num_rows == 48
    parts = ("start", "first_step", "train", "data_wait", "checkpoint", "evaluate", "final_evaluation", "job")
    assert set(parts) == set(record["seconds"])


def test_tensorboard_has_the_same_figures(whole: LaunchResult) -> None:
    """The event file's val accuracy is the history's."""
    folder = Path(whole.run_uri)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("epoch/val_accuracy")
    expected = [(row["step"], row["val_accuracy"]) for row in rows if row["kind"] == "epoch"]
    assert expected == [(event.step, pytest.approx(event.value)) for event in events]


def test_predictions_and_figures_agree(whole: LaunchResult) -> None:
    """Accuracy counted from the predictions is the figure; each image of test is there once."""
    rows = pq.read_table(Path(whole.run_uri) / "predictions/test.parquet").to_pylist()
    right = sum(row["label"] == row["predicted"] for row in rows) / len(rows)
    assert whole.evaluations["test"]["accuracy"]["value"] == pytest.approx(right)
    assert 48 == len({row["id"] for row in rows}) == whole.evaluations["test"]["n_images"]


def test_the_same_command_ends_in_the_same_bytes(whole: LaunchResult, train: Train) -> None:
    """Repeated, and lengthened from one epoch to two with resume=auto (new, then existing), on two workers."""
    again = train("again", "checkpoint.every_steps=2")
    train("longer", "train.epochs=1", "run.resume=auto")
    longer = train("longer", "run.resume=auto", "checkpoint.every_steps=2")
    assert _tensors(whole) == _tensors(again) == _tensors(longer)
    assert [attempt["attempt"] for attempt in _record(longer)["attempts"]] == [1, 2]
    assert whole.evaluations["test"] == longer.evaluations["test"]


def test_another_number_of_workers_may_take_over(train: Train) -> None:
    """Micro batches are kept: one worker goes on where two were."""
    train("handed", "train.epochs=1")
    handed = train("handed", "run.resume=must", "scale.num_workers=1")
    record = _record(handed)
    assert (
        record["micro_batch_size"],
        [attempt["workers"] for attempt in record["attempts"]],
        record["epochs"],
    ) == (24, [2, 1], 2)


def test_a_non_finite_loss_ends_in_one_attempt(train: Train) -> None:
    """The error names step and rank; Ray did not try again although it may three times."""
    with pytest.raises(RunFailedError, match=r"not a finite number at step \d+ .* rank \d") as caught:
        train("broken", "optim.name=sgd", "optim.lr=1e30")
    assert caught.value.kind == "non_finite_loss"


def test_what_a_failed_run_leaves(train: Train, whole: LaunchResult) -> None:
    """run.json of the run above says failed, why, and that one group of workers was started."""
    record = json.loads((Path(whole.run_uri).parent / "broken" / "run.json").read_text())
    assert (record["status"], record["reason"]["kind"], record["group_starts"]) == ("failed", "non_finite_loss", 1)


def test_more_workers_than_the_cluster_holds_fail_at_once(train: Train) -> None:
    """Refused in seconds, with what is needed and what is there; nothing is written."""
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"need 40 CPUs, but the cluster has 4"):
        train("huge", "scale.num_workers=40", "train.micro_batch_size=1")
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["model.backbone=resnet19"], "resnet18"),
        (["train.micro_batch_size=48"], "has only 1 micro batches of 48"),
        (["data.split=fold:7/5"], "fold:7/5"),
        (["model.weights=/nowhere"], "/nowhere"),
        (["run.resume=must"], "there is no run 'refused'"),
        (["schedule.warmup_epochs=5", "schedule.name=cosine"], "takes the whole run"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    overrides: list[str], part: str, train: Train, whole: LaunchResult
) -> None:
    """One paragraph, and no run folder."""
    with pytest.raises(InputError) as caught:
        train("refused", *overrides)
    assert part in str(caught.value)
    assert not (Path(whole.run_uri).parent / "refused").exists()


def test_a_taken_name_and_another_identity_are_refused(train: Train, whole: LaunchResult) -> None:
    """resume=never refuses the name; resume=must refuses another learning rate and says what changed."""
    with pytest.raises(InputError, match="'whole' is taken"):
        train("whole")
    with pytest.raises(InputError, match=r"optim\.lr was 0\.004, now 0\.1"):
        train("whole", "run.resume=must", "optim.lr=0.1")


def test_weights_of_another_network_are_refused(train: Train, whole: LaunchResult) -> None:
    """The tensors that do not fit are named, before Ray starts anything."""
    with pytest.raises(InputError, match=r"do not fit model\.backbone: .*missing"):
        train("misfit", f"model.weights={whole.run_uri}", "model.backbone=resnet18")


def test_a_finished_run_is_left_alone(train: Train, whole: LaunchResult) -> None:
    """Asked to go on with nothing left to do, it returns its figures and starts no attempt."""
    again = train("whole", "run.resume=auto", "checkpoint.every_steps=2")
    assert whole.evaluations == again.evaluations
    assert len(_record(again)["attempts"]) == 1


def test_evaluate_gives_the_figures_of_the_run(
    whole: LaunchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate RUN --split test --json` in another process layout repeats the run's figures, and counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = _record(whole)["test_evaluations"]
    assert main(["evaluate", whole.run_uri, "--split", "test", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert whole.evaluations["test"]["confusion_matrix"] == figures["confusion_matrix"]
    assert figures["ece"]["value"] == pytest.approx(whole.evaluations["test"]["ece"]["value"], abs=1e-6)
    assert before + 1 == _record(whole)["test_evaluations"]


def test_training_starts_from_another_run(whole: LaunchResult, train: Train) -> None:
    """`model.weights=RUN` with a frozen backbone keeps that run's trunk."""
    from safetensors.torch import load_file

    tuned = train("tuned", f"model.weights={whole.run_uri}", "model.freeze=backbone", "train.epochs=1")
    old, new = (load_file(Path(run.run_uri) / "model/model.safetensors") for run in (whole, tuned))
    same = {name: bool((old[name] == new[name]).all()) for name in old if not name.startswith("head.")}
    assert dict.fromkeys(same, True) == same
    assert any((old[name] != new[name]).any() for name in old if name.startswith("head."))
