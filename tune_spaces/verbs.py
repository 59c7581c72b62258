"""The search package's command. Imports nothing heavy at the top."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated

import typer

__all__ = ["tune"]


def tune(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Shipped recipe (oct, xray, demo) or YAML file.")],
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
