"""The training package's commands. Imports nothing heavy at the top."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from xdist_train.training.launch import LaunchResult

__all__ = [
    "cam",
    "card",
    "compare",
    "demo",
    "estimate",
    "evaluate",
    "export",
    "predict",
    "report",
    "runs",
    "train",
    "weights",
]

_Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. train.epochs=5.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_Model = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or a bare model folder.")]


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Shipped recipe (oct, covid_ct, ...) or YAML file.")],
    overrides: _Overrides = None,
    as_json: _Json = False,
) -> None:
    """Train, select by val, evaluate; everything is left in one run folder.

    Example: xdist-train train oct data.uri=oct-packed scale.num_workers=2 run.name=first
    """
    from xdist_train.config import resolve_config
    from xdist_train.training.launch import launch

    config = resolve_config(recipe, overrides or [])
    # With --json standard output holds nothing but the result.
    result = launch(config, command=_command(), console=_console(stderr=as_json), label=Path(recipe).stem)
    _print_result(result, as_json)


def estimate(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Shipped recipe (oct, covid_ct, ...) or YAML file.")],
    overrides: _Overrides = None,
    as_json: _Json = False,
) -> None:
    """Say what a training would take, before anything starts: time, memory, storage traffic, cost, what holds it up.

    Of this machine it measures for some seconds; hardware.device=a100 (t4, v100, l4, a10g, h100, h200) takes what is
    known of that one. Without data.uri, hardware.images says how many images there would be.

    Example: xdist-train estimate oct data.uri=oct-packed scale.num_workers=64 hardware.device=a100
    """
    from xdist_train.estimation.estimate import run_estimate
    from xdist_train.estimation.view import print_estimate

    console = _console(stderr=as_json)
    with console.status("") as status:
        found = run_estimate(recipe, overrides or [], status.update)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_estimate(found, console)


def evaluate(
    model: _Model,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    data: Annotated[str, typer.Option(help="Packed dataset; by default the run's own.")] = "",
    as_json: _Json = False,
) -> None:
    """Figures of a trained model on a split, with 95 % intervals over patients.

    For a run, figures and predictions are written into its folder too.

    Example: xdist-train evaluate runs/first --split test
    """
    from xdist_train.evidence.evaluation import run_evaluation
    from xdist_train.evidence.tables import figures_table

    report = run_evaluation(model, split, data)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _console().print(figures_table(report, title=split))


def predict(
    model: _Model,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Image files; with --out folders and s3:// URIs too.")
    ],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Classes shown for an image.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line; with --out, one of counts.")] = False,
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="Write a table instead: .csv or .parquet, path or s3:// URI.")
    ] = "",
    find: Annotated[
        str,
        typer.Option("--find", metavar="CLASS=SENSITIVITY", help="Decide for CLASS from a threshold with this on val."),
    ] = "",
    defer_below: Annotated[
        float, typer.Option("--defer-below", metavar="P", help="Leave to a person what is less sure (calibrated).")
    ] = 0.0,
) -> None:
    """Classify image files with the preprocessing that the model was evaluated with.

    A table has a row for every file, with calibrated probabilities and a decision; what cannot be read has a reason.

    Example: xdist-train predict runs/first scans --out answers.csv --find CNV=0.95 --defer-below 0.8
    """
    if out:
        _predict_batch(model, images, out, find, defer_below, as_json=as_json)
        return
    if find or defer_below:
        from cluster.errors import InputError

        raise InputError("--find and --defer-below fill a column of a table: give --out FILE.csv or FILE.parquet too.")
    from xdist_train.evidence.predict import predict_images

    for prediction in predict_images(model, images):
        typer.echo(json.dumps(prediction.to_json()) if as_json else prediction.text(top_k))


def export(
    model: _Model,
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="File or s3:// URI; by default model/model.onnx of the run.")
    ] = "",
) -> None:
    """Write a trained model as an ONNX file: pictures in, probabilities out, checked against the model.

    It takes uint8 [batch, channels, side, side]; normalising and softmax are inside. Needs the extra `onnx`.

    Example: xdist-train export runs/first --out first.onnx
    """
    from xdist_train.models.onnx_publishing import publish_onnx

    typer.echo(f"onnx: {publish_onnx(model, out)}")


def cam(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[cam.KEY=VALUE]...", help="Settings, e.g. cam.overlays=all.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test; by default cam.split.")] = "",
    data: Annotated[str, typer.Option(help="Packed dataset; by default the run's own.")] = "",
    as_json: _Json = False,
) -> None:
    """Explain a split: class activation maps, whether they lie on the lesions, and pictures of them.

    Ray workers share the split; what is there already is not done again. With --json, prints `cam.json`.

    Example: xdist-train cam runs/first --split test cam.method=gradcam++
    """
    from xdist_train.evidence.cams.job import run_cam

    console = _console(stderr=as_json)
    summary = run_cam(run, split=split, data_uri=data, overrides=overrides or [], console=console)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))


def card(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")],
    license_id: Annotated[
        str, typer.Option("--license", help="Of the weights, as the Hugging Face Hub spells it, e.g. apache-2.0.")
    ] = "",
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="File or s3:// URI; by default model/README.md of the run.")
    ] = "",
) -> None:
    """Write a model card of a run: data, splits, figures with intervals, limits, intended use, how to use it.

    Markdown with the head that the Hugging Face Hub reads. No patient and no file is named.

    Example: xdist-train card runs/first --license cc-by-nc-4.0
    """
    from xdist_train.evidence.card.writing import write_card

    typer.echo(f"card: {write_card(run, license_id=license_id, out=out)}")


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Run folders; the first is compared to.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    as_json: _Json = False,
) -> None:
    """Figures of runs side by side on the same images, and differences to the first, paired by patient.

    Example: xdist-train compare runs/first runs/second --split test
    """
    from xdist_train.evidence.compare import comparison_table, run_comparison

    comparison = run_comparison(runs, split)
    if as_json:
        typer.echo(json.dumps(comparison, indent=2))
    else:
        _console().print(comparison_table(comparison))


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="File to write; by default report.html in the run folder.")] = None,
    real_names: Annotated[
        bool, typer.Option("--real-names", help="Show file names and patients as they are, not by numbers.")
    ] = False,
) -> None:
    """One page of a run for clinicians and engineers: figures, curves, thresholds, errors, maps, configuration.

    It opens anywhere, without a network. With the maps of `xdist-train cam RUN`, it shows those too.

    Example: xdist-train report runs/first
    """
    from xdist_train.evidence.report.writing import write_report

    typer.echo(f"report: {write_report(run, out=out, real_names=real_names)}")


def demo(
    out: Annotated[str, typer.Option("--out", help="Folder or s3:// URI for data and run; nothing may be there.")] = (
        "demo-out"
    ),
    overrides: _Overrides = None,
) -> None:
    """Phantom images, packed, trained on 2 workers, evaluated, explained, reported: the whole path, in minutes.

    Settings are those of `train`, and those of `phantom` for the images, e.g. phantom.num_images=500.

    Example: xdist-train demo --out demo-out
    """
    from xdist_train.demo import run_demo

    _print_result(run_demo(out, overrides or [], _console(), _command()), as_json=False)


def runs(
    storage: Annotated[str, typer.Argument(metavar="[STORAGE]", help="Storage URI.")] = "runs",
    as_json: _Json = False,
) -> None:
    """List the runs, searches and repetitions of a storage: status, selected epoch, figure.

    Example: xdist-train runs runs
    """
    from cluster.runs import list_runs
    from xdist_train.training.listing import runs_table

    found = dict(list_runs(storage))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif not found:
        typer.echo(f"{storage}: no runs here.")
    else:
        _console().print(runs_table(found))


def weights(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Backbone, e.g. resnet50.")],
    out: Annotated[str, typer.Option("--out", help="Storage URI (storage.uri of later runs).")] = "runs",
) -> None:
    """Put a backbone's ImageNet weights into a storage, on a machine with a network.

    Example: xdist-train weights resnet50 --out runs
    """
    from cluster.store import open_store
    from xdist_train.models.weights import run_weights

    stored = run_weights(name, open_store(out))
    typer.echo(f"{stored.source}: {open_store(out).locate(stored.key)}")


def _predict_batch(model: str, images: list[str], out: str, find: str, defer_below: float, *, as_json: bool) -> None:
    from cluster.terminal import progress_bar
    from xdist_train.evidence.batch import predict_batch
    from xdist_train.evidence.decisions import parse_wish

    wish = parse_wish(find) if find else None
    with progress_bar() as progress:
        done = predict_batch(model, images, out, wish=wish, defer_below=defer_below, progress=progress)
    if as_json:
        typer.echo(json.dumps(done._asdict()))
        return
    how = f"temperature {done.temperature:.3f}" if done.temperature else "not calibrated: no figures of val"
    if wish and done.threshold is not None:
        how += f", {wish.class_name} from {done.threshold:.3f} on"
    typer.echo(
        f"{done.images:,} images, {done.unreadable:,} unreadable, {done.deferred:,} deferred ({how}): {done.where}"
    )


def _command() -> str:
    return shlex.join(["xdist-train", *sys.argv[1:]])


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _print_result(result: LaunchResult, as_json: bool) -> None:
    if as_json:
        values: dict[str, Any] = {
            "run": result.run_uri,
            "selected": result.selection,
            "evaluation": result.evaluations,
            "seconds": result.seconds,
        }
        typer.echo(json.dumps(values, indent=2))
        return
    from xdist_train.evidence.tables import figures_table

    console = _console()
    for split, report in result.evaluations.items():
        console.print(figures_table(report, title=split))
    console.print(f"run folder: {result.run_uri}", highlight=False, soft_wrap=True)
