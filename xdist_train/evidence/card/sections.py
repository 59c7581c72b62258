"""The sections of a model card, each as markdown from what was read. Names no patient, no file and no path."""

from __future__ import annotations

from collections.abc import Iterator

from dataloading.dataset import SPLITS
from xdist_train.evidence.answers import SplitAnswers
from xdist_train.evidence.calibration import scale_temperature
from xdist_train.evidence.card.markdown import bullets, plain, table
from xdist_train.evidence.card.splits import SplitFacts
from xdist_train.evidence.metrics import FIGURES
from xdist_train.evidence.report.reading import RunEvidence
from xdist_train.evidence.report.statements import headline, limits, temperature_statement
from xdist_train.evidence.report.threshold import THRESHOLD_CAPTION, THRESHOLD_HEADS, threshold_rows
from xdist_train.evidence.tables import TITLES, figure_text
from xdist_train.models.export import ModelDescription

__all__ = ["sections"]

_PER_CLASS = {"sensitivity": "sensitivity", "specificity": "specificity", "auroc": "AUROC"}
_SPLIT_SCHEMES = {
    "patient": "drawn by patient: no patient has images in two of them",
    "given": "the data set's own",
    "given_test": "the data set's own test; train and val drawn by patient from the rest",
}
_FOLD = "one of equal folds is test; all drawn by patient"
_NO_FIGURES_OF_TEST = (
    "**There are no figures of test**: it was not evaluated. Val selected the weights, so what stands here is too good "
    "on average."
)
_USE = """xdist-train predict FOLDER scan.jpeg --json            # FOLDER: the one that holds this file
xdist-train evaluate FOLDER --data DATASET --split test
xdist-train export FOLDER --out model.onnx             # pictures in, probabilities out; needs no xdist-train"""


def sections(run: RunEvidence, description: ModelDescription, splits: SplitFacts | None) -> Iterator[str]:
    """All of them, in the order of the card."""
    yield f"# {plain(run.store.name)}"
    yield plain(headline(run))
    yield from _intended_use(run)
    yield from _limits(run)
    yield from _data(run, splits)
    for split in ("test", "val"):
        yield from _figures(split, run.answers.get(split))
    yield from _thresholds(run)
    yield from _use(description)
    yield from _origin(run, description)


def _intended_use(run: RunEvidence) -> Iterator[str]:
    classes = ", ".join(plain(name) for name in run.main.classes)
    yield "## Intended use"
    yield f"Research: telling {classes} apart in images like those that it was trained on; comparison with others."
    yield "## Not intended use"
    yield (
        "It is **not a medical device**: no authority has cleared it, and no diagnosis, treatment or triage may rest "
        "on it. It knows its classes alone: any picture is given to one of them, be it of another disease, another "
        "organ, or no medical image at all."
    )


def _limits(run: RunEvidence) -> Iterator[str]:
    said = list(limits(run))
    if run.info is None:
        said.append("The data set was not at hand when this card was written, so what its audit found is missing here.")
    said.append(
        "Intervals say how far figures may move with other patients of the same kind. They say nothing of other "
        "devices, hospitals or populations, for which it must be evaluated anew."
    )
    yield "## Limits"
    yield bullets(said)


def _data(run: RunEvidence, splits: SplitFacts | None) -> Iterator[str]:
    yield "## Data"
    scheme = run.record["split"]
    facts = [
        f"Fingerprint: {run.record['fingerprint']}",
        f"Split: {scheme} ({_SPLIT_SCHEMES.get(scheme, _FOLD)})",
    ]
    if run.info:
        colour = "gray" if run.info.channels == 1 else "in colour"
        facts.append(f"Images: {run.info.num_images:,}, {colour}, of {run.info.num_patients:,} patients")
        facts.append(f"Files left out as unusable: {run.info.num_quarantined:,}")
    yield bullets(facts)
    if splits:
        heads = ["split", "images", "patients", *(f"images of {name}" for name in run.main.classes)]
        counts = zip(SPLITS, splits.images, splits.patients, splits.classes, strict=True)
        yield table(
            heads,
            [[name, *(f"{count:,}" for count in (images, patients, *each))] for name, images, patients, each in counts],
        )
        yield f"Patients with images in two of the splits or more: {splits.shared_patients:,}."


def _figures(split: str, answers: SplitAnswers | None) -> Iterator[str]:
    yield f"## Figures on {split}"
    if answers is None:
        yield _NO_FIGURES_OF_TEST if split == "test" else f"There are no figures of {split}."
        return
    report = answers.report
    yield f"{report['n_images']:,} images of {report['n_patients']:,} patients; 95 % intervals over patients."
    yield table(["figure", "value (interval)"], [[TITLES[name], figure_text(report[name])] for name in FIGURES])
    rows = [
        [name, *(figure_text(figures[key]) for key in _PER_CLASS), str(figures["n"])]
        for name, figures in report["per_class"].items()
    ]
    yield table(["class", *_PER_CLASS.values(), "images"], rows)


def _thresholds(run: RunEvidence) -> Iterator[str]:
    if not {"val", "test"} <= run.answers.keys():
        return
    val, test = (run.answers[split].scores(run.patients[split]) for split in ("val", "test"))
    yield "## Thresholds and calibration"
    yield plain(THRESHOLD_CAPTION)
    resamples = run.main.report["interval"]["resamples"]
    yield table(THRESHOLD_HEADS, threshold_rows(val, test, run.main.classes, resamples=resamples))
    yield plain(temperature_statement(scale_temperature(val, test)))


def _use(description: ModelDescription) -> Iterator[str]:
    facts = description.preprocessing
    colour = "gray" if facts.channels == 1 else "colour"
    fit = "stretched" if facts.fit == "stretch" else "their middle square is taken"
    yield "## How to use it"
    yield f"```\n{_USE}\n```"
    figures = "each picture's own" if facts.normalise == "image" else "those in `model.json`"
    yield (
        f"`model.json` describes `model.safetensors`. Pictures are read as {colour}, upright, {fit} to "
        f"{facts.image_size} x {facts.image_size} pixels and normalised by mean and deviation, {figures}; "
        f"the answer is a softmax over the classes."
    )


def _origin(run: RunEvidence, description: ModelDescription) -> Iterator[str]:
    record = run.record
    selection = description.selection
    facts = {
        "backbone": description.model.backbone,
        "first weights": description.started_from or "none: trained from new weights",
        "weights, sha256": description.weights_sha256,
        "taken from": f"epoch {selection.epoch + 1}, step {selection.step}",
        "configuration, digest": record["identity_digest"],
        "seed": str(run.config.train.seed),
        "code": record["code_revision"],
        **{name: str(value) for name, value in record["versions"].items()},
    }
    yield "## Where it comes from"
    yield table(["fact", "value"], [[name, value] for name, value in facts.items()])
