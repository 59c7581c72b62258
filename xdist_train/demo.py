"""The demo: the whole path from no data to a figure, with the same functions as the commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.errors import InputError
from cluster.store import open_store
from cluster.terminal import progress_bar
from dataloading.config import PackConfig
from dataloading.packing.pack import run_pack
from dataloading.packing.phantom import PhantomConfig, run_phantom
from xdist_train.config import resolve_config
from xdist_train.training.launch import LaunchResult, launch

__all__ = ["run_demo"]


def run_demo(
    out: Path, overrides: Sequence[str], console: Console, command: str, phantom: PhantomConfig | None = None
) -> LaunchResult:
    """Phantom (by default of 2,000 images), pack, train on 2 workers, evaluate; all is left under `out`.

    Raises:
        InputError: `out` exists, or an override is wrong; nothing was written.
    """
    if out.exists():
        raise InputError(f"--out {str(out)!r} exists. Give a folder that does not, or delete it.")
    images, packed = out / "images", out / "packed"
    phantom = phantom or PhantomConfig()
    config = resolve_config("demo", [f"data.uri={packed}", f"storage.uri={out / 'runs'}", "run.name=demo", *overrides])
    out.mkdir(parents=True)
    console.print("1/3 drawing synthetic OCT images ...", highlight=False)
    with progress_bar() as show:
        summary = run_phantom(images, phantom, progress=lambda done, total: show("images", done, total))
    console.print(f"    {phantom.num_images} images in {summary.seconds:.0f} s", highlight=False)
    console.print("2/3 packing: verify, audit, split by patient, shard ...", highlight=False)
    with progress_bar() as show:
        result = run_pack(images, open_store(str(packed)), PackConfig(), progress=show)
    console.print(f"    {result.info.num_images} images of {result.info.num_patients} patients", highlight=False)
    console.print("3/3 training on 2 Ray workers ...", highlight=False)
    return launch(config, command=command, console=console, label="demo")
