"""What a repetition refuses before anything is written, and what it takes for the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_config
from cluster.errors import InputError
from dataloading.dataset import Dataset
from tests.records import RECORD
from tests.tune_spaces.made_up_parts import write_small
from tune_spaces.config import RepeatConfig
from tune_spaces.repeat import _draft
from xdist_train.config import read_recipe


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """36 images of 3 classes with splits of their own."""
    return write_small(tmp_path_factory.mktemp("repeat") / "set")


def _settings(dataset: Dataset, storage: Path, *settings: str) -> list[str]:
    places = [f"data.uri={dataset.store.uri}", f"storage.uri={storage}", f"loader.cache_dir={storage}/cache"]
    return [*places, "run.name=r", "loader.image_size=64", "train.batch_size=6", *settings]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["folds=1"], r"folds must be 3..100, or 0 for none, not 1"),
        (["folds=2"], r"folds must be 3..100, or 0 for none, not 2"),
        (["folds=-1"], r"folds must be"),
        (["seeds=[1,0,1]"], r"command line: seeds must be a list of different numbers.*not \[1, 0, 1\]"),
        (["seeds=3"], r"seeds must be a list.*e.g. \[0,1,2\], not 3"),
        (["seeds=[-1]"], "seeds must be a list"),
        (["seeds=[true]"], "seeds must be a list"),
        (["seeds=[]"], "seeds must be a list"),
        (["splits=[fold:0/3]"], "splits must be different ones of patient, given, given_test"),
        (["concurrency=-1"], "concurrency must be 0 or more"),
        (["data.split=given"], "data.split=given and folds=5.*Leave data.split out, or give folds=0"),
        (["folds=0", "splits=[given]", "data.split=given"], "both say what is trained on"),
        (["seeds=[1]", "train.seed=3"], r"train.seed=3 and seeds=\[1\]"),
        (["evaluate.test=false"], "evaluate.test=false"),
        (["cam.after=true"], "cam.after=true"),
        (["fold=5"], "unknown key 'fold'. Did you mean 'folds'"),
        (["seed=[1]"], "unknown key 'seed'"),
        (["folds=13"], r"folds=13: \w+ of fold \d+ has no image of class"),
        (["run.resume=must"], "there is no repetition in"),
        (["data.uri=/nowhere"], "holds no packed dataset"),
        (["data.uri=''"], "data.uri is not set"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    settings: list[str], words: str, small: Dataset, tmp_path: Path
) -> None:
    """In one paragraph that says what to do."""
    with pytest.raises(InputError, match=words) as refusal:
        _draft("demo", _settings(small, tmp_path, *settings))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ([], [f"fold{fold}-seed0" for fold in range(5)]),
        (["folds=3", "seeds=[1,2]"], [f"fold{fold}-seed{seed}" for seed in (1, 2) for fold in range(3)]),
        (["folds=3", "train.seed=4"], [f"fold{fold}-seed4" for fold in range(3)]),
        (["folds=3", "splits=[given]"], ["fold0-seed0", "fold1-seed0", "fold2-seed0", "given-seed0"]),
        (["folds=0"], ["patient-seed0", "given-seed0"]),
        (["folds=0", "data.split=given_test", "seeds=[0,1]"], ["given-test-seed0", "given-test-seed1"]),
        (["folds=0", "data.split=fold:1/3"], ["fold-1-3-seed0"]),
    ],
)
def test_settings_become_parts(settings: list[str], parts: list[str], small: Dataset, tmp_path: Path) -> None:
    """Folds times seeds; without folds what data.split says, or both splits."""
    assert parts == [part.name for part in _draft("demo", _settings(small, tmp_path, *settings)).parts]


def _started(dataset: Dataset, storage: Path, *settings: str, **record: Any) -> None:
    """A folder in which a repetition of these settings has been started."""
    draft = _draft("demo", _settings(dataset, storage, *settings))
    values = {"parts": [], "identity": draft.identity, "micro_batch_size": draft.prepared.micro_batch_size}
    draft.folder.claim()
    draft.folder.publish_json("run.json", {**RECORD, **values, **record})


def test_a_taken_name_is_refused_and_says_what_is_there(small: Dataset, tmp_path: Path) -> None:
    """A repetition can go on, a run or a search cannot be one."""
    _started(small, tmp_path, "folds=3")
    with pytest.raises(InputError, match=r"'r' is taken: .* holds a repetition.*run.resume=must"):
        _draft("demo", _settings(small, tmp_path, "folds=3"))
    (tmp_path / "r" / "run.json").write_text(json.dumps(RECORD))
    with pytest.raises(InputError, match="holds a run, not a repetition"):
        _draft("demo", _settings(small, tmp_path, "folds=3", "run.resume=auto"))
    (tmp_path / "r" / "search.json").write_text("{}")
    with pytest.raises(InputError, match="holds a search, not a repetition"):
        _draft("demo", _settings(small, tmp_path, "folds=3", "run.resume=auto"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["folds=4"], "data.split was '3 folds by patient', now '4 folds by patient'"),
        (["folds=3", "splits=[given]"], "data.split was"),
        (["folds=3", "seeds=[0]"], r"train.seed was \[0, 1\], now \[0\]"),
        (["folds=3", "seeds=[0,1]", "train.epochs=20"], "train.epochs was 12, now 20"),
        (["folds=3", "seeds=[0,1]", "optim.lr=1"], "optim.lr was 0.004, now 1.0"),
    ],
)
def test_another_repetition_does_not_go_on_in_its_place(
    settings: list[str], words: str, small: Dataset, tmp_path: Path
) -> None:
    """What differs is named."""
    _started(small, tmp_path, "folds=3", "seeds=[0,1]")
    with pytest.raises(InputError, match=words):
        _draft("demo", _settings(small, tmp_path, "run.resume=must", *settings))


def test_the_same_goes_on_and_may_have_more_seeds_and_other_workers(small: Dataset, tmp_path: Path) -> None:
    """All its parts have the micro batches of the first start."""
    _started(small, tmp_path, "folds=3", "seeds=[0,1]", "scale.num_workers=2")
    for settings in (["seeds=[0,1]"], ["seeds=[1,0,2]", "scale.num_workers=1"]):
        draft = _draft("demo", _settings(small, tmp_path, "folds=3", "run.resume=must", *settings))
        assert 3 == draft.config.train.micro_batch_size == draft.identity["train.micro_batch_size"]


def test_a_recipe_may_hold_the_repetition(small: Dataset, tmp_path: Path) -> None:
    """Its keys are settings like any other; a recipe's own seed is no contradiction to seeds."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("folds: 4\nseeds: [3]\ntrain: {seed: 9}\n")
    repeat = load_config(RepeatConfig, [read_recipe(str(recipe))])
    assert (4, [3]) == (repeat.folds, [*repeat.seeds])
    assert 4 == len(_draft(str(recipe), _settings(small, tmp_path)).parts)
