"""The data plane's commands: phantom, pack, look, cache. Imports nothing heavy at the top."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.config import Layer, load_config, parse_overrides, read_layer
from cluster.errors import InputError
from cluster.terminal import progress_bar
from dataloading.config import PackConfig

__all__ = ["cache", "look", "pack", "phantom"]

_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings; a wrong name is answered with the right ones."),
]


def phantom(
    out: Annotated[Path, typer.Option("--out", help="Folder to make; must not exist.")],
    overrides: _Overrides = None,
) -> None:
    """Make synthetic OCT B-scans with lesion masks, in OCT2017's tree and file naming.

    Example: xdist-train phantom --out phantom phantom.num_images=2000 phantom.seed=0
    """
    from dataloading.packing.phantom import PhantomConfig, run_phantom

    config = _load_section("phantom", PhantomConfig, parse_overrides(overrides or []))
    with progress_bar() as show:
        summary = run_phantom(out, config, progress=lambda done, total: show("images", done, total))
    typer.echo(f"{out}: {config.num_images:,} images of {summary.patients:,} patients in {summary.seconds:.1f} s.")
    typer.echo(f"Next: xdist-train pack {out} --out {out}-packed")


def pack(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of images.")],
    out: Annotated[str, typer.Option("--out", help="Where the packed dataset goes; must not exist.")],
    overrides: _Overrides = None,
    csv: Annotated[Path | None, typer.Option(help="Take path,label[,patient][,split] from this CSV.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of lesion masks; SRC/masks by default.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="YAML file with a pack section.")] = None,
) -> None:
    """Verify, audit, split and shard a folder of images.

    Finds train|val|test/CLASS/files, class folders, a CSV, and by name the published layouts oct2017, chest_xray,
    covid_ct and covid_xray (pack.layout). Rejected files go to a quarantine list.

    Example: xdist-train pack OCT2017 --out oct-packed pack.patient=oct2017
    """
    from cluster.store import open_store
    from dataloading.packing.pack import run_pack

    layers = [read_layer(config_file)] if config_file else []
    config = _load_section("pack", PackConfig, [*layers, *parse_overrides(overrides or [])])
    with progress_bar() as show:
        result = run_pack(source, open_store(out), config, csv=csv, masks=masks, progress=show)
    for line in result.lines():
        typer.echo(line)
    typer.echo(f"Next: xdist-train look {out}   or   xdist-train train oct data.uri={out}")


def look(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Packed dataset.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Sheet to write; by default look.png, or with --figures in DIR.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Also draw class counts, sizes, samples and pixel values."),
    ] = None,
) -> None:
    """Print a dataset's audit and draw a sheet of augmented samples; with --figures, all that there is to see.

    Example: xdist-train look oct-packed --figures oct-figures
    """
    from dataloading.dataset import open_dataset
    from dataloading.exploration import draw_figures
    from dataloading.look import run_look

    packed = open_dataset(dataset)
    for line in run_look(packed, out or (figures / "augmented.png" if figures else Path("look.png"))):
        typer.echo(line)
    if figures:
        for line in draw_figures(packed, figures):
            typer.echo(line)


def cache(
    action: Annotated[str, typer.Argument(metavar="[ACTION]", help="list, size or clear.")] = "list",
    folder: Annotated[str, typer.Option("--dir", help="loader.cache_dir; by default ~/.cache/xdist-train.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """What this node keeps of data sets: list them, their size, or remove those that nobody uses.

    Example: xdist-train cache clear
    """
    from dataloading.cache_listing import CACHE_ACTIONS, cache_lines
    from dataloading.loading.node_cache import cache_root

    if action not in CACHE_ACTIONS:
        raise InputError(f"cache {action!r}: actions are {', '.join(CACHE_ACTIONS)}.")
    for line in cache_lines(action, cache_root(folder), as_json=as_json):
        typer.echo(line)


def _load_section(name: str, schema: type, layers: list[Layer]) -> Any:
    """One section by itself, under its name as the commands spell it."""
    root = make_dataclass("Root", [(name, schema, field(default_factory=schema))], frozen=True, kw_only=True)
    return getattr(load_config(root, layers), name)
