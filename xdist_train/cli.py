"""The command line: finds verbs by entry point, turns errors into one paragraph and an exit code.

A verb is a typer command function named by an entry point of the group `xdist_train.verbs`; its module must
import nothing heavy, so that `--help` answers at once. Knows no verb by name.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from cluster.errors import XdistError
from cluster.terminal import printable

__all__ = ["build_app", "main"]

VERBS = "xdist_train.verbs"
_INTERRUPTED = 130
_HELP = "Train, evaluate and explain image classifiers over a Ray cluster."
_EPILOG = "Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped behind a checkpoint (resumable)."


def build_app() -> typer.Typer:
    """The application with every installed verb."""
    app = typer.Typer(
        name="xdist-train",
        help=_HELP,
        epilog=_EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_options)
    for point in sorted(entry_points(group=VERBS), key=lambda point: point.name):
        app.command(name=point.name)(point.load())
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"xdist-train {version('xdist-train')}")
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["XDIST_DEBUG"] = "1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code."""
    try:
        build_app()(args=list(arguments) if arguments is not None else None)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print("xdist-train: interrupted; nothing that looks finished was left.", file=sys.stderr)
        return int(end.code or 0)
    except Exception as error:  # the process entry point: every error ends as one paragraph
        if os.environ.get("XDIST_DEBUG"):
            traceback.print_exc()
        return _report(error)
    return 0


def _report(error: Exception) -> int:
    if isinstance(error, XdistError):
        print(f"xdist-train: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    text = f"{type(error).__name__}: {error}"
    print(
        f"xdist-train: unexpected error ({printable(text)}). This is a defect of the program; "
        "the same command with `xdist-train --debug ...` shows where.",
        file=sys.stderr,
    )
    return 1


def run() -> None:
    """Console script. A SIGTERM unwinds like Ctrl-C, so that half-written folders are removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
