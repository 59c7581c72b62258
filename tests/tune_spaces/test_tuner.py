"""What Tune asks and hears: errors end the search and keep their words. Without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from cluster.errors import StoreError
from tests.tune_spaces.made_up import open_search, write_run
from tune_spaces.board import EPOCH, FIGURE, TRIAL, Board
from tune_spaces.search import Search
from tune_spaces.tuner import _Asker


class _Handle:
    """An actor's handle whose calls are made at once, in this process."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


_RAY = SimpleNamespace(get=lambda value: value)


def _asker(search: Search, board: Board) -> _Asker:
    return _Asker(_RAY, search, _Handle(board), "test")


def test_a_trial_goes_from_tune_to_the_search_and_back(tmp_path: Path) -> None:
    """Its order to the board, its epochs judged, its end read from its run folder."""
    search, board = open_search(tmp_path, scheduler="asha", trials=2), Board()
    asker = _asker(search, board)
    for trial, figure in (("a", 0.9), ("b", 0.1)):
        config = asker.suggest(trial)
        assert isinstance(config, dict)
        assert config[TRIAL] == board.order(config[TRIAL]).name
        assert asker.suggest("other") is None  # one at a time
        asker.on_trial_result(trial, {"train_loss": 1.0})
        asker.on_trial_result(trial, {EPOCH: 1, FIGURE: figure})
        (task,) = search.live
        verdict = board.verdict(task.name)
        write_run(search, task, verdict or "finished", {1: figure})
        asker.on_trial_complete(trial)
    assert Searcher.FINISHED == asker.suggest("c")
    assert asker.error is None
    assert ["finished", "pruned"] == [row.status for row in search.board().rows]


@pytest.mark.parametrize("method", ["next", "report", "end"])
def test_an_error_ends_the_search_with_its_own_words(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune swallows some and wraps others; the first is kept, nothing more starts, and Tune comes to an end."""
    search, board = open_search(tmp_path), Board()
    asker = _asker(search, board)

    def fail(*_: object) -> None:
        raise StoreError("the storage is away")

    if method == "next":
        monkeypatch.setattr(search, method, fail)
        assert Searcher.FINISHED == asker.suggest("a")
    else:
        assert isinstance(asker.suggest("a"), dict)
        monkeypatch.setattr(search, method, fail)
        asker.on_trial_result("a", {EPOCH: 1, FIGURE: 0.5})
        asker.on_trial_complete("a")
        asker.on_trial_complete("a")  # a second error is no news
        assert Searcher.FINISHED == asker.suggest("b")
    assert "the storage is away" == str(asker.error)
    assert search.stopping


def test_a_trial_whose_process_was_lost_is_said_so(tmp_path: Path) -> None:
    """Tune gave it up: tried once more, then it has failed."""
    search, board = open_search(tmp_path, trials=1), Board()
    asker = _asker(search, board)
    for trial in ("a", "b"):
        assert isinstance(asker.suggest(trial), dict)
        asker.on_trial_complete(trial, error=True)
    assert ["failed"] == [row.status for row in search.board().rows]
    assert "the process that drove it ended" in search.board().rows[0].reason
