"""The demo: the whole path from no data to a figure, with the same functions as the commands.

All that stays goes to one place, a folder or object storage; only images need a disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from cluster.config import Layer, load_config, parse_overrides
from cluster.store import LocalStore, Store, open_store
from cluster.terminal import progress_bar
from dataloading.config import PackConfig
from dataloading.packing.output import refuse_taken_store
from dataloading.packing.pack import run_pack
from dataloading.packing.phantom import PhantomConfig, run_phantom
from xdist_train.config import Config, narrow, read_recipe
from xdist_train.evidence.report.writing import write_report
from xdist_train.training.launch import LaunchResult, launch

__all__ = ["run_demo"]


@dataclass(frozen=True, kw_only=True)
class _DemoConfig(Config):
    """A run, and the images that it is for."""

    phantom: PhantomConfig = field(default_factory=PhantomConfig)


def run_demo(out: str, overrides: Sequence[str], console: Console, command: str) -> LaunchResult:
    """Phantom (by default of 2,000 images), pack, train on 2 workers, evaluate, explain, report; all lies under `out`.

    Args:
        out: URI of a place where nothing is; on a disk the images stay there too.
        overrides: `key=value` of the run, and of the images as `phantom.key=value`.
        console: where the steps are shown.
        command: what the user typed, for `run.json`.

    Raises:
        InputError: something is at `out`, or an override is wrong; nothing was written.
        StoreError: nothing can be written to `out`.
    """
    place = open_store(out)
    packed, runs = place.child("packed"), place.child("runs")
    config = _resolve(packed, runs, overrides)
    refuse_taken_store(place)
    place.try_out()
    with _image_folder(place) as images:
        _draw(images, config.phantom, console)
        _pack(images, packed, console)
    console.print("3/3 training on 2 Ray workers, then explaining ...", highlight=False)
    result = launch(narrow(config), command=command, console=console, label="demo")
    console.print(f"report: {write_report(result.run_uri)}", highlight=False, markup=False, soft_wrap=True)
    return result


def _resolve(packed: Store, runs: Store, overrides: Sequence[str]) -> _DemoConfig:
    places = {"data": {"uri": packed.uri}, "storage": {"uri": runs.uri}, "run": {"name": "demo"}}
    ours = Layer("demo", {**places, "cam": {"after": True}})
    return load_config(_DemoConfig, [read_recipe("demo"), ours, *parse_overrides(overrides)])


@contextmanager
def _image_folder(place: Store) -> Iterator[Path]:
    """Where images are drawn and packed from: beside the rest on a disk, else a folder that goes afterwards."""
    if isinstance(place, LocalStore):
        yield place.path("images")
        return
    with tempfile.TemporaryDirectory(prefix="xdist-demo-") as folder:
        yield Path(folder) / "images"


def _draw(images: Path, config: PhantomConfig, console: Console) -> None:
    console.print("1/3 drawing synthetic OCT images ...", highlight=False)
    with progress_bar() as show:
        summary = run_phantom(images, config, progress=lambda done, total: show("images", done, total))
    console.print(f"    {config.num_images} images in {summary.seconds:.0f} s", highlight=False)


def _pack(images: Path, packed: Store, console: Console) -> None:
    console.print("2/3 packing: verify, audit, split by patient, shard ...", highlight=False)
    with progress_bar() as show:
        info = run_pack(images, packed, PackConfig(), progress=show).info
    console.print(f"    {info.num_images} images of {info.num_patients} patients", highlight=False)
