"""The search package's commands. Imports nothing heavy at the top."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated

import typer

__all__ = ["repeat", "tune"]

_Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Shipped recipe (oct, covid_ct, ...) or YAML file.")]


def tune(
    recipe: _Recipe,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="space=NAME or FILE, search.trials=20, settings of all trials."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the leaderboard as JSON.")] = False,
) -> None:
    """Search a space of settings over the cluster; leaves a leaderboard, a report and the best settings as a recipe.

    Example: xdist-train tune oct space=oct data.uri=oct-packed search.trials=50 run.name=first-search
    """
    from dataclasses import asdict

    from rich.console import Console

    from tune_spaces.launch import run_search
    from tune_spaces.live import leaderboard_table
    from tune_spaces.verdict import verdict

    # With --json standard output holds nothing but the result.
    console = Console(stderr=as_json)
    command = shlex.join(["xdist-train", *sys.argv[1:]])
    result = run_search(recipe, overrides or [], command=command, console=console)
    if as_json:
        typer.echo(json.dumps({"search": result.uri, **asdict(result.board)}, indent=2))
        return
    console.print(leaderboard_table(result.board))
    console.print(" ".join(verdict(result.board)), highlight=False, markup=False)
    console.print(f"search folder: {result.uri} (report.html, best.yaml)", highlight=False, soft_wrap=True)


def repeat(
    recipe: _Recipe,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="folds=5 (0: none), seeds=[0,1,2], settings of all parts."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print repeat.json.")] = False,
) -> None:
    """Train a recipe again and again: by folds of patients, each of them test once, and by seeds, side by side.

    Leaves a run folder whose test figures are pooled over the folds, with mean and spread, and one a part. With folds=0
    it trains on splits=[patient,given], by default on both where the set has splits of its own, and shows what these
    share.

    Example: xdist-train repeat xray folds=5 seeds=[0,1] data.uri=xray-packed run.name=five-folds
    """
    from rich.console import Console

    from tune_spaces.repeat import run_repetition
    from tune_spaces.repeat_view import parts_table, pooled_table
    from tune_spaces.result import notes_of

    console = Console(stderr=as_json)
    command = shlex.join(["xdist-train", *sys.argv[1:]])
    result = run_repetition(recipe, overrides or [], command=command, console=console)
    if as_json:
        typer.echo(json.dumps({"run": result.uri, **result.values}, indent=2))
        return
    console.print(parts_table(result.values))
    console.print(pooled_table(result.values))
    for note in notes_of(result.values):
        console.print(note, highlight=False, markup=False)
    console.print(f"run folder: {result.uri} (repeat.json, parts/)", highlight=False, soft_wrap=True)
