"""What a run's evidence comes to in sentences, for its page and its card. Names no patient and no file."""

from __future__ import annotations

from collections.abc import Iterator

from dataloading.packing.audit_warnings import build_warnings, nameless
from xdist_train.evidence.calibration import TemperatureEffect
from xdist_train.evidence.report.reading import RunEvidence
from xdist_train.evidence.tables import figure_text

__all__ = ["headline", "limits", "temperature_statement"]


def headline(run: RunEvidence) -> str:
    """What was trained on what, and how good it is."""
    main, record = run.main, run.record
    selected, model = record["selected"] or {}, run.config.model
    first = f"A {model.backbone} was trained" + (f" {len(run.parts)} times" if run.parts else "")
    if run.info:
        first += f" with a set of {run.info.num_images:,} images of {run.info.num_patients:,} patients"
    first += f" ({', '.join(main.classes)}), split by {record['split']}"
    if selected:
        first += f"; the weights are those of epoch {selected['epoch'] + 1} of {record['epochs']}, the best by "
        first += f"{selected['metric']} on val ({selected['value']:.4f})"
    report = main.report
    counts = f"{report['n_images']:,} {main.split} images of {report['n_patients']:,} patients"
    head = f"On {counts}, balanced accuracy is {figure_text(report['balanced_accuracy'])}"
    return f"{first}. {head} (95 % interval over patients)."


def limits(run: RunEvidence) -> Iterator[str]:
    """What must be weighed with the figures: of the data, of the evaluation, of what the model looks at."""
    if run.info and run.info.audit:
        yield from build_warnings(nameless(run.info.audit))
    if "test" not in run.answers:
        yield "Test was not evaluated: val selected the weights, so its figures are too good on average."
    if run.record["test_evaluations"] > 1:
        times = run.record["test_evaluations"]
        yield f"Test was evaluated {times} times: what was chosen after the first was chosen with it."
    if run.main.report.get("prior"):
        yield str(run.main.report["prior"]["note"])
    yield from (cam.values["shortcut"]["warning"] for cam in run.cams if cam.values["shortcut"]["warning"])


def temperature_statement(effect: TemperatureEffect) -> str:
    """What temperature scaling changes."""
    said = (
        f"Temperature scaling with {effect.temperature:.3f}, fitted on val, changes the calibration error on test from "
        f"{effect.ece_before:.4f} to {effect.ece_after:.4f}. "
    )
    return said + ("A temperature above 1 says that the model was too sure." if effect.temperature > 1 else "")
