"""Studies: what is asked, learned, kept over a kill, and refused."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.samplers import TPESampler

from cluster.errors import InputError
from tests.tune_spaces.written import EVERYTHING, write_space
from tune_spaces.space import Space
from tune_spaces.study import SAMPLERS, SCHEDULERS, Asked, Study, open_study
from xdist_train.config import resolve_config

_EVERYTHING = write_space(EVERYTHING)
_SMALL = write_space("optim.lr: {loguniform: [1.0e-4, 1.0]}\noptim.name: {choice: [adamw, sgd]}")
_OWN = _SMALL.locate(resolve_config("demo", [])).params


def _figure(values: dict[str, Any]) -> float:
    """A cheap figure with its best at a learning rate of 0.03, and sgd the better rule."""
    return -abs(math.log10(values["optim.lr"] / 0.03)) - (values["optim.name"] == "adamw")


def _ask(study: Study) -> Asked:
    asked = study.ask()
    assert asked is not None
    return asked


def _run(study: Study, num_trials: int) -> list[dict[str, Any]]:
    """Trials one after the other, some pruned and some failed."""
    found = []
    for _ in range(num_trials):
        asked = _ask(study)
        found.append(asked.values)
        figure = _figure(asked.values)
        if asked.number % 5 == 3:
            study.report(asked.number, 0, figure)
            study.prune(asked.number)
        elif asked.number % 7 == 6:
            study.fail(asked.number, "out of memory")
        else:
            study.complete(asked.number, figure)
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_first_trial_is_the_recipe(sampler: str) -> None:
    """Under every sampler, and a grid has it no second time."""
    study = open_study(_SMALL, _OWN, sampler=sampler)
    assert Asked(0, {"optim.lr": 4e-3, "optim.name": "adamw"}) == study.ask()


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_the_recipe_leaves_out_is_drawn(sampler: str) -> None:
    """A recipe that lies outside in some keys keeps the others."""
    assert _ask(open_study(_SMALL, {"optim.name": "sgd"}, sampler=sampler)).values["optim.name"] == "sgd"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_seeds_ask_the_same(sampler: str) -> None:
    """A study depends on its seed and on what it was told."""
    first, same = (_run(open_study(_EVERYTHING, {}, sampler=sampler, seed=3, num_points=2), 20) for _ in range(2))
    other = _run(open_study(_EVERYTHING, {}, sampler=sampler, seed=4, num_points=2), 20)
    assert first == same != other


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_opened_again_goes_on_as_if_never_closed(sampler: str, tmp_path: Path) -> None:
    """After every trial, to the same trials."""
    whole = _run(open_study(_EVERYTHING, {}, sampler=sampler, seed=1, num_points=2), 24)
    parts: list[dict[str, Any]] = []
    for _ in range(8):
        journal = tmp_path / "journal.jsonl"
        # `_run` decides by trial number, which goes on too.
        parts += _run(open_study(_EVERYTHING, {}, sampler=sampler, seed=1, num_points=2, journal=journal), 3)
    assert whole == parts


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_trials_side_by_side_depend_on_what_was_told_alone(sampler: str, tmp_path: Path) -> None:
    """Four are asked before any ends; opening again in between changes nothing, and no two are alike."""
    asked = []
    for path in (None, tmp_path / "journal.jsonl"):
        study = open_study(_SMALL, _OWN, sampler=sampler, journal=path)
        _run(study, 15)
        four = []
        for _ in range(4):
            if path:
                study = open_study(_SMALL, _OWN, sampler=sampler, journal=path)
            four.append(_ask(study))
        asked.append(four)
    assert asked[0] == asked[1]
    assert len({trial.values["optim.lr"] for trial in asked[0]}) == 4


def test_running_trials_are_known_after_a_kill(tmp_path: Path) -> None:
    """By number, with their values; ended ones with status, figures and reason."""
    journal = tmp_path / "deep" / "journal.jsonl"
    study = open_study(_SMALL, _OWN, journal=journal)
    trials = [_ask(study) for _ in range(5)]
    study.complete(0, 0.5)
    study.report(1, 0, 0.1)
    study.report(1, 1, 0.2)
    study.prune(1)
    study.fail(2, "worker out of memory")
    study.report(3, 0, 0.3)
    again = open_study(_SMALL, _OWN, journal=journal)
    assert trials[3:] == again.running()
    again.report(3, 0, 0.9)
    again.report(3, 1, 0.4)
    again.complete(3, 0.4)
    told = [(t.number, t.status, t.figure, t.figures, t.reason) for t in again.told()]
    assert told == [
        (0, "finished", 0.5, {}, ""),
        (1, "pruned", 0.2, {0: 0.1, 1: 0.2}, ""),
        (2, "failed", None, {}, "worker out of memory"),
        (3, "finished", 0.4, {0: 0.3, 1: 0.4}, ""),
    ]
    assert [trial.values for trial in trials[:4]] == [trial.values for trial in again.told()]
    assert _ask(again).number == 5


@pytest.mark.parametrize("num_told", [0, 12])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_journal_cut_anywhere_opens_and_goes_on(sampler: str, num_told: int, tmp_path: Path) -> None:
    """A driver killed within any write of `ask`: the same trials come again; a torn line spoils nothing after it."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"

    def reopen(journal: Path) -> Study:
        return open_study(_SMALL, _OWN, sampler=sampler, num_points=9, journal=journal)

    _run(reopen(whole), num_told)
    start = whole.stat().st_size if num_told else 0
    study = reopen(whole)
    expected = [_ask(study) for _ in range(3)]
    data = whole.read_bytes()
    for end in range(start, len(data), 37):
        cut.write_bytes(data[:end])
        study = reopen(cut)
        found = study.running()
        found += [_ask(study) for _ in range(3 - len(found))]
        assert expected == found
        assert expected == reopen(cut).running()


def test_the_journal_is_json_lines(tmp_path: Path) -> None:
    """Nothing in it is unpickled; a lock is not left behind."""
    journal = tmp_path / "journal.jsonl"
    _run(open_study(_SMALL, _OWN, journal=journal), 3)
    assert all(isinstance(json.loads(line), dict) for line in journal.read_text().splitlines())


def test_a_figure_that_is_not_finite_fails_its_trial() -> None:
    """A sampler learns nothing from it."""
    study = open_study(_SMALL, _OWN)
    study.complete(_ask(study).number, math.nan)
    assert [("failed", "its metric is nan")] == [(trial.status, trial.reason) for trial in study.told()]


def test_a_grid_asks_each_point_once_and_ends() -> None:
    """Choices times points, the recipe's own first, and then no more; failed points are not asked again."""
    study = open_study(_SMALL, _OWN, sampler="grid", num_points=5)
    assert 11 == study.num_trials
    found = _run(study, 11)
    assert study.ask() is None
    points = {(values["optim.lr"], values["optim.name"]) for values in found}
    rates = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert {(4e-3, "adamw")} | {(lr, name) for lr in rates for name in ("adamw", "sgd")} == {
        (next((rate for rate in rates if math.isclose(lr, rate)), lr), name) for lr, name in points
    }


def test_a_grid_that_holds_the_recipe_has_it_once() -> None:
    """As its first point."""
    own = {"optim.lr": 1e-4, "optim.name": "sgd"}
    study = open_study(_SMALL, own, sampler="grid", num_points=2)
    assert 4 == study.num_trials
    assert own == _ask(study).values


def test_a_grid_starts_with_whole_recipes_only() -> None:
    """What lies outside in a key is no point."""
    assert 4 == open_study(_SMALL, {"optim.name": "sgd"}, sampler="grid", num_points=2).num_trials


def test_tpe_counts_running_trials() -> None:
    """As bad ones, so that trials side by side spread; a failed one counts for nothing."""
    asked = []
    for fails in (False, True):
        study = open_study(_SMALL, _OWN)
        _run(study, 15)
        if fails:
            study.fail(_ask(study).number, "lost")
        else:
            _ask(study)
        asked.append(_ask(study))
    assert asked[0].number == asked[1].number
    assert asked[0].values != asked[1].values


def test_tpe_draws_conditional_parameters_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one case jointly; alone they would not see each other."""
    study = open_study(_EVERYTHING, {})
    _run(study, 20)
    joint: dict[str, Any] = {}
    draw = TPESampler.sample_relative

    def spy(self: TPESampler, *arguments: Any) -> dict[str, Any]:
        joint.update(draw(self, *arguments))
        return joint

    monkeypatch.setattr(TPESampler, "sample_relative", spy)
    _ask(study)
    assert {"optim.momentum[optim.name=sgd]", "optim.lr[model.backbone=resnet18,optim.name=*]"} < joint.keys()


_FEW = write_space("train.batch_size: {choice: [8, 16, 32]}\noptim.name: {choice: [adamw, sgd]}")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_configuration_is_tried_twice(sampler: str) -> None:
    """Not while it runs, nor when it ended, whichever way; then there is no more."""
    study = open_study(_FEW, _FEW.locate(resolve_config("demo", ["train.batch_size=8"])).params, sampler=sampler)
    asked = [_ask(study) for _ in range(2)]
    study.fail(0, "lost")
    study.complete(1, 0.5)
    asked += [_ask(study) for _ in range(4)]
    assert 6 == len({tuple(sorted(trial.values.items())) for trial in asked})
    assert study.ask() is None
    assert 6 == len(study.told()) + len(study.running())


def test_an_ask_is_one_line_of_the_journal(tmp_path: Path) -> None:
    """So a kill leaves a trial whole, or nothing of it."""
    journal = tmp_path / "journal.jsonl"
    study = open_study(_EVERYTHING, {}, journal=journal)
    before = len(journal.read_text().splitlines())
    _ask(study)
    assert before + 1 == len(journal.read_text().splitlines())


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_tpe_goes_where_figures_are_better(direction: Any) -> None:
    """In either direction."""
    study = open_study(_SMALL, {}, direction=direction)
    for _ in range(30):
        asked = _ask(study)
        study.complete(asked.number, (1 if direction == "maximize" else -1) * _figure(asked.values))
    values = [trial.values for trial in study.told()]
    early, late = (statistics.mean(map(_figure, part)) for part in (values[:10], values[20:]))
    assert late > early + 0.5
    assert sum(trial["optim.name"] == "sgd" for trial in values[20:]) > 5


def _verdicts(study: Study, *curves: Sequence[float]) -> list[int]:
    """Trials one after the other, each to where the scheduler stops it: how many epochs each had.

    As in a search, nothing is asked behind the last epoch.
    """
    done = []
    for curve in curves:
        number = _ask(study).number
        for epochs, figure in enumerate(curve, 1):
            study.report(number, epochs, figure)
            if epochs == len(curve):
                study.complete(number, max(curve))
            elif study.should_stop(number):
                study.prune(number)
                break
        done.append(epochs)
    return done


def _level(figure: float, epochs: int = 9) -> list[float]:
    return [figure] * epochs


def test_asha_asks_at_its_rungs_alone() -> None:
    """After grace epochs and each time that these have grown by the factor; whatever is reported in between."""
    study = open_study(_SMALL, _OWN, scheduler="asha", grace_epochs=2, reduction_factor=2)
    _verdicts(study, _level(0.9, 20), _level(0.8, 20))
    stopped_at = []
    for rung in (2, 4, 8, 16):
        # Best up to a rung, where it falls below all others.
        curve = [1.0 if epochs < rung else 0.1 for epochs in range(1, 21)]
        stopped_at += _verdicts(study, curve)
    assert [2, 4, 8, 16] == stopped_at
    dips = [0.1 if epochs not in (2, 4, 8, 16) else 1.0 for epochs in range(1, 21)]
    assert [20] == _verdicts(study, dips)


def test_asha_lets_one_in_factor_go_on() -> None:
    """Those among the best third of all that came as far, this one among them; the first always, equals too."""
    study = open_study(_SMALL, _OWN, scheduler="asha", grace_epochs=1)
    figures = (0.5, 0.6, 0.55, 0.55, 0.7, 0.58, 0.65, 0.65, 0.60)
    # Of up to five the best goes on, of six to eight the second best too, of nine the third best: at each rung.
    assert [9, 9, 1, 1, 9, 1, 3, 3, 1] == _verdicts(study, *map(_level, figures))


def test_asha_knows_lower_is_better() -> None:
    """In the direction minimize."""
    study = open_study(_SMALL, _OWN, scheduler="asha", grace_epochs=1, direction="minimize")
    assert [9, 1, 9, 1] == _verdicts(study, *map(_level, (0.5, 0.6, 0.4, 0.45)))


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_asha_stops_what_is_not_a_number(direction: Any) -> None:
    """At a rung, were it alone there; and it stands in nobody's way afterwards."""
    study = open_study(_SMALL, _OWN, scheduler="asha", grace_epochs=1, direction=direction)
    assert [1, 9, 1] == _verdicts(study, _level(math.nan), _level(0.5), _level(math.nan))


def test_asha_counts_trials_that_still_run() -> None:
    """It waits for none, and none is judged again by who comes later."""
    study = open_study(_SMALL, _OWN, scheduler="asha", grace_epochs=1)
    numbers = [_ask(study).number for _ in range(4)]
    verdicts = []
    for number, figure in zip(numbers, (0.5, 0.4, 0.6, 0.55), strict=True):
        study.report(number, 1, figure)
        verdicts.append(study.should_stop(number))
    study.report(0, 2, 0.1)
    assert [False, True, False, True] == verdicts
    assert not study.should_stop(0)


def test_median_waits_for_three_and_for_the_grace_epochs() -> None:
    """Then it stops after an epoch what has been below the median of the finished ones all along."""
    study = open_study(_SMALL, _OWN, scheduler="median", grace_epochs=2)
    rising = [[share * epochs for epochs in range(1, 6)] for share in (0.10, 0.14, 0.12)]
    assert [5, 5, 5] == _verdicts(study, *rising)
    below, above, falls_back = [0.11] * 5, [0.3] * 5, [0.3, 0.3, 0.0, 0.0, 0.0]
    # The median is 0.24 after two epochs, 0.36 after three.
    assert [2, 3, 3] == _verdicts(study, below, above, falls_back)
    assert [5] == _verdicts(study, [0.0, 0.9, 0.0, 0.0, 0.0])


def test_median_knows_lower_is_better() -> None:
    """In the direction minimize."""
    study = open_study(_SMALL, _OWN, scheduler="median", grace_epochs=1, direction="minimize")
    assert [3, 3, 3, 1, 3] == _verdicts(study, *(_level(figure, 3) for figure in (0.5, 0.6, 0.7, 0.65, 0.55)))


def test_none_never_stops() -> None:
    """Not even what is worst."""
    study = open_study(_SMALL, _OWN, scheduler="none")
    assert [9] * 6 == _verdicts(study, *(_level(1 / (number + 1)) for number in range(6)))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_decides_the_same_on_a_journal_opened_again(scheduler: str, tmp_path: Path) -> None:
    """Before each question; and asked once more after it, as by a search that was killed before the trial ended."""
    draw = np.random.default_rng(0)
    curves = draw.random((12, 9)).tolist()
    whole = _verdicts(open_study(_SMALL, _OWN, scheduler=scheduler, grace_epochs=1), *curves)
    journal = tmp_path / "journal.jsonl"

    def reopen() -> Study:
        return open_study(_SMALL, _OWN, scheduler=scheduler, grace_epochs=1, journal=journal)

    found = []
    for curve in curves:
        number = _ask(reopen()).number
        for epochs, figure in enumerate(curve, 1):
            reopen().report(number, epochs, figure)
            if epochs == len(curve):
                reopen().complete(number, max(curve))
                break
            verdict = reopen().should_stop(number)
            assert verdict == reopen().should_stop(number)
            if verdict:
                reopen().prune(number)
                break
        found.append(epochs)
    assert whole == found
    assert (scheduler == "none") == (found == [9] * 12)


_TEST_FUNCTION = write_space("""
optim.name: {choice: [adamw, sgd]}
optim.lr:
  by: optim.name
  cases: {adamw: {loguniform: [1.0e-5, 1.0e-1]}, sgd: {loguniform: [1.0e-3, 10.0]}}
optim.weight_decay: {loguniform: [1.0e-5, 1.0]}
sampler.alpha: {uniform: [0.0, 1.0]}
""")


def _loss(values: dict[str, Any]) -> float:
    """A bowl whose best learning rate depends on the rule, with a floor between the two of 0.5."""
    rate = {"adamw": 1e-3, "sgd": 1e-1}[values["optim.name"]]
    return (
        math.log10(values["optim.lr"] / rate) ** 2
        + math.log10(values["optim.weight_decay"] / 1e-2) ** 2
        + 4 * (values["sampler.alpha"] - 0.7) ** 2
        + 0.5 * (values["optim.name"] == "sgd")
    )


def _best(space: Space, sampler: str, seed: int) -> float:
    study = open_study(space, {}, sampler=sampler, direction="minimize", seed=seed)
    losses = []
    for _ in range(40):
        asked = _ask(study)
        losses.append(_loss(asked.values))
        study.complete(asked.number, losses[-1])
    return min(losses)


def test_tpe_beats_random_at_equal_trials() -> None:
    """Median of the best of 40 trials over 20 seeds, on a bowl with a conditional learning rate."""
    tpe, random = (
        statistics.median(_best(_TEST_FUNCTION, sampler, seed) for seed in range(20)) for sampler in ("tpe", "random")
    )
    assert tpe < 0.6 * random


def test_another_space_on_a_journal_is_refused(tmp_path: Path) -> None:
    """By the keys that differ."""
    journal = tmp_path / "journal.jsonl"
    open_study(_SMALL, _OWN, journal=journal)
    other = write_space(
        "optim.lr: {loguniform: [1.0e-3, 1.0]}\noptim.name: {choice: [adamw, sgd]}\ntrain.seed: {randint: [0, 1]}"
    )
    with pytest.raises(InputError) as caught:
        open_study(other, {}, journal=journal)
    assert str(caught.value) == (
        f"journal {journal}: belongs to a search over another space; these keys differ: optim.lr, train.seed. "
        "Go on with the same space, or start a search under another name."
    )


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"sampler": "random"}, "sampler tpe, not random"),
        ({"direction": "minimize"}, "direction maximize, not minimize"),
        ({"seed": 9}, "seed 0, not 9"),
        ({"scheduler": "asha"}, "scheduler none, not asha"),
    ],
)
def test_other_settings_on_a_journal_are_refused(setting: dict[str, Any], text: str, tmp_path: Path) -> None:
    """They would not go on as the search began."""
    journal = tmp_path / "journal.jsonl"
    open_study(_SMALL, _OWN, journal=journal)
    with pytest.raises(InputError, match=f"belongs to a search with {text}. Go on with the same settings"):
        open_study(_SMALL, _OWN, journal=journal, **setting)


def test_an_unknown_sampler_is_refused() -> None:
    """With those that are."""
    with pytest.raises(InputError, match=r"unknown sampler 'tpee'. They are: grid, random, tpe"):
        open_study(_SMALL, _OWN, sampler="tpee")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"scheduler": "median"}, "scheduler asha, not median"),
        ({"grace_epochs": 2}, "grace_epochs 3, not 2"),
        ({"reduction_factor": 4}, "reduction_factor 3, not 4"),
    ],
)
def test_another_rule_of_stopping_on_a_journal_is_refused(setting: dict[str, Any], text: str, tmp_path: Path) -> None:
    """Trials would be stopped by two rules."""
    journal = tmp_path / "journal.jsonl"
    open_study(_SMALL, _OWN, scheduler="asha", journal=journal)
    with pytest.raises(InputError, match=f"belongs to a search with {text}. Go on with the same settings"):
        open_study(_SMALL, _OWN, journal=journal, **{"scheduler": "asha", **setting})


def test_an_unknown_scheduler_is_refused() -> None:
    """With those that are."""
    with pytest.raises(InputError, match=r"unknown scheduler 'hyperband'. They are: asha, median, none"):
        open_study(_SMALL, _OWN, scheduler="hyperband")


@pytest.mark.parametrize("text", ['{"op_code": 99}\n', "[1]\n", "no json\n{}\n", '{"op_code": 2}\n{}\n'])
def test_a_file_that_is_no_journal_is_refused(text: str, tmp_path: Path) -> None:
    """By its path; it stays as it was."""
    journal = tmp_path / "journal.jsonl"
    journal.write_text(text)
    with pytest.raises(InputError, match=r"journal\.jsonl: not a readable journal"):
        open_study(_SMALL, _OWN, journal=journal)
    assert text == journal.read_text()


def test_a_journal_of_another_program_is_refused(tmp_path: Path) -> None:
    """Trials without our settings."""
    journal = tmp_path / "journal.jsonl"
    records = [
        {"op_code": 0, "worker_id": "w", "study_name": "search", "directions": [2]},
        {"op_code": 4, "worker_id": "w", "study_id": 0, "datetime_start": "2026-01-01T00:00:00"},
    ]
    journal.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    with pytest.raises(InputError, match="holds trials of another program"):
        open_study(_SMALL, _OWN, journal=journal)
