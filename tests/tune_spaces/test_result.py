"""What a repetition says in the end, in its folder, on its page and on the terminal."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.errors import RunFailedError, StoppedError
from cluster.runs import list_runs
from cluster.terminal import LiveArea
from dataloading.dataset import Dataset
from tests.tune_spaces.made_up_parts import (
    NUM_IMAGES,
    answer,
    ids_of,
    open_repetition,
    record_of,
    run_parts,
    write_small,
)
from tune_spaces.leaderboard import TrialRow
from tune_spaces.parts import plan_parts
from tune_spaces.repeat import _conclude
from tune_spaces.repeat_view import RepeatView, parts_table, pooled_table
from tune_spaces.repetition import Repetition
from tune_spaces.result import Result, build_result, notes_of
from xdist_train.evidence.compare import run_comparison
from xdist_train.evidence.metrics import FIGURES, Scores, point_figures
from xdist_train.evidence.report.writing import write_report
from xdist_train.models.prior import PriorShift
from xdist_train.training.listing import runs_table


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """36 images of 3 classes with splits of their own."""
    return write_small(tmp_path_factory.mktemp("result") / "set")


def _finish(repetition: Repetition, dataset: Dataset, **failing: Any) -> Result:
    run_parts(repetition, dataset, **failing)
    return _conclude(repetition, dataset, RepeatView(Console(quiet=True), LiveArea()))


def _text(table: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    return out.getvalue()


def _all_labels(dataset: Dataset) -> np.ndarray:
    return dataset.read_manifest(["label"])["label"].to_numpy()


def test_one_seed_is_pooled_as_it_is(small: Dataset, tmp_path: Path) -> None:
    """Every image once, figures of exactly those predictions, and the folds' mean and spread as numpy has them."""
    repetition = open_repetition(tmp_path, small)
    values = _finish(repetition, small).values
    store = repetition.folder.store
    table = pq.read_table(io.BytesIO(store.read("predictions/test.parquet")))
    assert [*range(NUM_IMAGES)] == table["id"].to_pylist()
    classes = small.info.classes
    assert [classes[label] for label in _all_labels(small)] == table["label"].to_pylist()
    probabilities = np.stack([table[f"probability_{name}"].to_numpy() for name in classes], axis=1)
    expected = point_figures(Scores.of(_all_labels(small), probabilities))
    scheme = values["schemes"][0]
    report = store.read_json("evaluation/test.json")
    for name in FIGURES:
        assert expected[name] == pytest.approx(scheme["pooled"][name]["value"])
        assert report[name] == scheme["pooled"][name]
        folds = [part["figures"][name] for part in values["parts"]]
        assert folds == [row["figures"][name] for row in scheme["per_fold"]]
        assert scheme["over_folds"][name]["mean"] == pytest.approx(np.mean(folds))
        assert scheme["over_folds"][name]["standard_deviation"] == pytest.approx(np.std(folds, ddof=1))
    assert "models of seed 0" == scheme["pooled_of"]
    assert store.read_json("repeat.json") == json.loads(json.dumps(values))


def test_several_seeds_are_an_ensemble_and_it_is_called_one(small: Dataset, tmp_path: Path) -> None:
    """The pooled probability is the mean over seeds; each seed's own figures, their mean and spread stand beside."""
    repetition = open_repetition(tmp_path, small, seeds=(0, 1, 2))
    values = _finish(repetition, small).values
    scheme = values["schemes"][0]
    table = pq.read_table(io.BytesIO(repetition.folder.store.read("predictions/test.parquet")))
    drawn = np.zeros((3, NUM_IMAGES, 3))
    for seed in range(3):
        for fold in range(3):
            ids = ids_of(small, f"fold:{fold}/3")
            drawn[seed, ids] = answer(small, ids, seed).probabilities
    found = np.stack([table[f"probability_{name}"].to_numpy() for name in small.info.classes], axis=1)
    np.testing.assert_allclose(drawn.mean(axis=0), found)
    singles = [point_figures(Scores.of(_all_labels(small), one)) for one in drawn]
    assert singles == [row["figures"] for row in scheme["per_seed"]]
    accuracies = [figures["accuracy"] for figures in singles]
    assert scheme["over_seeds"]["accuracy"]["standard_deviation"] == pytest.approx(np.std(accuracies, ddof=1))
    assert [np.mean([p["figures"]["accuracy"] for p in values["parts"] if p["fold"] == fold]) for fold in range(3)] == (
        pytest.approx([row["figures"]["accuracy"] for row in scheme["per_fold"]])
    )
    assert "an ensemble of 3" in scheme["pooled_of"]
    (note,) = notes_of(values)
    assert "mean probability of the models of seeds 0, 1, 2: an ensemble of 3" in note
    assert [note] == record_of(repetition)["notes"]


def test_a_seed_with_a_failed_part_is_left_out_by_name(small: Dataset, tmp_path: Path) -> None:
    """The others are pooled."""
    repetition = open_repetition(tmp_path, small, seeds=(0, 1))
    values = _finish(repetition, small, failing=["fold2-seed1"]).values
    scheme = values["schemes"][0]
    assert ([0], [1], "models of seed 0") == (scheme["seeds"], scheme["missing_seeds"], scheme["pooled_of"])
    assert "seed 1 is not in the figures" in notes_of(values)[1]
    assert "fold2-seed1: non_finite_loss: the loss is NaN" in notes_of(values)[1]
    assert "finished" == record_of(repetition)["status"]
    assert "failed (non_finite_loss: the loss is NaN)" in _text(parts_table(values))


def test_nothing_is_pooled_where_no_seed_is_whole(small: Dataset, tmp_path: Path) -> None:
    """That is a failure with every reason; what there is of the parts is kept."""
    repetition = open_repetition(tmp_path, small, seeds=(0, 1))
    with pytest.raises(RunFailedError, match=r"nothing to pool.*fold2-seed1: non_finite_loss.*tries the others again"):
        _finish(repetition, small, failing=["fold0-seed0", "fold2-seed1"])
    record = record_of(repetition)
    assert ("failed", False) == (record["status"], "evaluation/test.json" in record["complete"])
    values = repetition.folder.store.read_json("repeat.json")
    assert values["schemes"][0]["pooled"] is None
    assert 4 == sum(part["figures"] is not None for part in values["parts"])
    assert "figure" in _text(pooled_table(values))


def test_nothing_is_pooled_before_all_have_ended(small: Dataset, tmp_path: Path) -> None:
    """A stop says how far it came and how to go on."""
    repetition = open_repetition(tmp_path, small)
    run_parts(repetition, small, limit=2)
    repetition.stopping = True
    with pytest.raises(StoppedError, match=r"2 of 3 parts have finished.*run.name=r run.resume=must goes on"):
        _conclude(repetition, small, RepeatView(Console(quiet=True), LiveArea()))
    assert ("stopped", []) == (record_of(repetition)["status"], record_of(repetition)["complete"])


def test_splits_stand_side_by_side(small: Dataset, tmp_path: Path) -> None:
    """Each on its own test images; the folder's own figures are those of the first."""
    repetition = open_repetition(tmp_path, small, folds=0, splits=("patient", "given"), seeds=(0, 1))
    values = _finish(repetition, small).values
    assert ["patient", "given"] == [scheme["scheme"] for scheme in values["schemes"]]
    assert [9, 9] == [scheme["n_images"] for scheme in values["schemes"]]
    assert values["schemes"][0]["over_folds"] is None
    assert (
        repetition.folder.store.read_json("evaluation/test.json")["accuracy"]
        == (values["schemes"][0]["pooled"]["accuracy"])
    )
    shown = _text(pooled_table(values))
    assert all(words in shown for words in ("the patient split", "the set's own split", "single seeds"))
    assert "single folds" not in shown.replace("single seeds, folds", "")


@pytest.mark.parametrize(
    ("patients", "pairs", "words"),
    [(5, 1, r"share 5 patients \(40% of their 10 test images.*1 pairs"), (0, 0, "share no patient")],
)
def test_what_given_splits_share_is_said_beside_their_figures(
    patients: int, pairs: int, words: str, small: Dataset, tmp_path: Path
) -> None:
    """As `pack` found it."""
    values = _finish(open_repetition(tmp_path, small, folds=0, splits=("patient", "given")), small).values
    overlap = {"patients": patients, "test_images": 10, "test_images_of_train_patients": 4, "duplicates": pairs}
    assert 1 == len(notes_of(values))
    note = notes_of({**values, "overlap": overlap})[1]
    assert re.search(words, note)


def test_moved_shares_of_classes_are_said_of_the_pooled_figures(small: Dataset) -> None:
    """As they are of each part's."""
    plan = [part for part, _ in _rows(small)]
    prior = PriorShift(train=(0.2, 0.3, 0.5), drawn=(1 / 3,) * 3, learned=(1 / 3,) * 3)
    answers = {part.name: answer(small, ids_of(small, part.split), 0, prior) for part in plan}
    result = build_result("r", _rows(small), answers, small, metric="accuracy", resamples=100)
    assert result.evidence is not None
    assert {"class0": 0.2, "class1": 0.3, "class2": 0.5} == pytest.approx(result.evidence.report["prior"]["train"])


def _rows(dataset: Dataset) -> list[Any]:
    parts = plan_parts(3, (), (0,))
    return [(part, TrialRow(number=n, name=part.name, status="finished", values={})) for n, part in enumerate(parts)]


def test_a_terminal_shows_every_part_and_keeps_what_was_said(small: Dataset, tmp_path: Path) -> None:
    """Where each stands, in words; said lines are printed once."""
    drawn: list[Any] = []
    out = io.StringIO()
    area = LiveArea(live=SimpleNamespace(update=drawn.append))
    view = RepeatView(Console(file=out, width=120), area)
    repetition = open_repetition(tmp_path, small, changed=view.say)
    view.begin(repetition.rows(), 1)
    run_parts(repetition, small, limit=1)
    repetition.next()
    view.show(repetition.rows(), {"fold1-seed0": "epoch 2/9"})
    view.show(repetition.rows(), {})
    shown = [line.split() for line in _text(drawn[0]).splitlines()[1:]]
    assert [["fold0-seed0", "finished"], ["fold1-seed0", "epoch", "2/9"], ["fold2-seed0", "waits"]] == shown
    said = out.getvalue().splitlines()
    assert ["3 parts; 1 at a time", "part fold0-seed0 starts"] == said[:2]
    assert re.fullmatch(
        r"part fold0-seed0 finished: balanced accuracy \S+ on test \(epoch 2\); 1 of 3 have finished", said[2]
    )
    assert ["part fold1-seed0 starts"] == said[3:]


def test_the_folder_is_a_run_like_any_other(small: Dataset, tmp_path: Path) -> None:
    """`runs`, `report` and `compare` take it; the page speaks of parts where a run has one model."""
    first = open_repetition(tmp_path / "a", small, seeds=(0, 1))
    _finish(first, small)
    other = open_repetition(tmp_path / "b", small, seeds=(1,))
    _finish(other, small)
    listed = _text(runs_table(dict(list_runs(str(tmp_path / "a")))))
    assert "pooled: balanced_accuracy" in listed
    assert "6 parts" in listed
    compared = run_comparison([first.folder.store.uri, other.folder.store.uri], "test")
    assert (NUM_IMAGES, "patient") == (compared["n_images"], compared["unit"])
    page = Path(write_report(first.folder.store.uri)).read_text()
    for words in ("was trained 6 times", "fold2-seed1", "an ensemble of 2", "parts/fold0-seed0", "of several models"):
        assert words in page
    assert "no history" not in page
