"""The sections of a run's report, each as HTML from what was read. Pure but for the pictures of the gallery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xdist_train.evidence.answers import SplitAnswers
from xdist_train.evidence.calibration import reliability, scale_temperature
from xdist_train.evidence.curves import average_precision, threshold_curve
from xdist_train.evidence.metrics import FIGURES
from xdist_train.evidence.page import section, table, text
from xdist_train.evidence.report import charts
from xdist_train.evidence.report.gallery import gallery
from xdist_train.evidence.report.reading import CamSummary, RunEvidence
from xdist_train.evidence.report.statements import headline, limits, temperature_statement
from xdist_train.evidence.report.threshold import threshold_slider, threshold_table
from xdist_train.evidence.tables import TITLES, figure_text

__all__ = ["sections"]

_PER_CLASS = {"sensitivity": "sensitivity", "specificity": "specificity", "auroc": "AUROC"}
_MOST_ERRORS = 25
_BASELINES = {"centred_blob": "a blob in the middle", "mean_map": "the mean map"}
_REMOVALS = {"top": "the map's highest", "random_pixels": "scattered pixels", "random_map": "a random map's highest"}
_PLACES = {"border": "the border", "outside_tissue": "outside tissue"}


def sections(run: RunEvidence) -> Iterator[str]:
    """All of them, in the order of the page."""
    yield section("In short", *_summary(run))
    yield section("Data", *_data(run))
    yield section(f"Figures on {run.main.split}", *_figures(run.main))
    for split, answers in run.answers.items():
        if answers is not run.main:
            more = "\n".join(_figures(answers))
            yield f"<details><summary>{text(f'The same on {split}')}</summary>\n{more}</details>"
    yield section("Thresholds", *_thresholds(run))
    yield section("Calibration", *_calibration(run))
    yield section("Errors", *_errors(run))
    yield section("Where the model looks", *_maps(run))
    yield section("Training", *_training(run))
    yield section("Time", *_time(run))
    yield section("Configuration", *_configuration(run))


def _summary(run: RunEvidence) -> Iterator[str]:
    yield f'<p class="verdict">{text(headline(run))}</p>'
    warnings = [*limits(run), *run.record["notes"]]
    if warnings:
        items = "".join(f"<li>{text(warning)}</li>" for warning in warnings)
        yield f'<div class="warnings"><p>To be weighed with the figures:</p>\n<ul>{items}</ul></div>'


def _data(run: RunEvidence) -> Iterator[str]:
    info = run.info
    if info is None:
        uri = run.config.data.uri
        yield f"<p>{text(f'The data set is not at {uri} any more, or is another one now: its audit is not shown.')}</p>"
        return
    splits = {**info.audit.get("patient_split_counts", {})} if info.audit else {}
    rows = [
        [name, f"{info.counts[name]:,}", *(f"{counts.get(name, 0):,}" for counts in splits.values())]
        for name in info.classes
    ]
    caption = "Images by class, in all and by the split that keeps patients apart."
    yield table(caption, ["class", "all", *splits], rows, folded=False)
    facts = {
        "images": f"{info.num_images:,}, {'gray' if info.channels == 1 else 'in colour'}",
        "patients": f"{info.num_patients:,}",
        "left out, with a reason in quarantine.parquet": f"{info.num_quarantined:,}",
        "fingerprint": info.fingerprint[:16],
    }
    baseline = info.audit.get("size_baseline")
    if baseline:
        facts["balanced accuracy of width and height alone"] = (
            f"{baseline['balanced_accuracy']:.2f} (chance {baseline['chance']:.2f})"
        )
    yield table("The data set.", ["fact", "value"], [[name, value] for name, value in facts.items()])


def _figures(answers: SplitAnswers) -> Iterator[str]:
    report, scores = answers.report, answers.scores()
    yield table(
        f"{report['n_images']:,} images of {report['n_patients']:,} patients; 95 % intervals over patients.",
        ["figure", "value (interval)"],
        [[TITLES[name], figure_text(report[name])] for name in FIGURES],
        folded=False,
    )
    yield table(
        "Each class against the rest, by the likeliest class.",
        ["class", *_PER_CLASS.values(), "images"],
        [
            [name, *(figure_text(figures[key]) for key in _PER_CLASS), str(figures["n"])]
            for name, figures in report["per_class"].items()
        ],
        folded=False,
    )
    curves = {
        name: threshold_curve(scores.labels == index, scores.probabilities[:, index])
        for index, name in enumerate(answers.classes)
        if (scores.labels == index).any()
    }
    areas = {name: report["per_class"][name]["auroc"]["value"] for name in curves}
    precisions: dict[str, float | None] = {name: average_precision(curve) for name, curve in curves.items()}
    yield _side_by_side(
        _figure("Confusion matrix", charts.confusion(report["confusion_matrix"], answers.classes)),
        _figure("ROC: each class against the rest, with its area", charts.roc(curves, areas)),
        _figure("Precision and recall, with average precision", charts.precision_recall(curves, precisions)),
    )


def _thresholds(run: RunEvidence) -> Iterator[str]:
    if not {"val", "test"} <= run.answers.keys():
        yield f"<p>A threshold is chosen on val and judged on test; {_both(run)}.</p>"
        return
    val, test = (run.answers[split].scores(run.patients[split]) for split in ("val", "test"))
    resamples = run.main.report["interval"]["resamples"]
    yield threshold_table(val, test, run.main.classes, resamples=resamples)
    yield threshold_slider(val, test, run.main.classes)


def _calibration(run: RunEvidence) -> Iterator[str]:
    main = run.main.scores()
    if "val" not in run.answers or "test" not in run.answers:
        yield _figure("Reliability", charts.reliability_diagram(reliability(main), None))
        yield f"<p>A temperature is fitted on val and judged on test; {_both(run)}.</p>"
        return
    val = run.answers["val"].scores()
    effect = scale_temperature(val, main)
    yield f"<p>{text(temperature_statement(effect))}</p>"
    scaled = effect.scaled
    yield _figure("Reliability on test", charts.reliability_diagram(reliability(main), reliability(scaled)))


def _both(run: RunEvidence) -> str:
    """What is missing where a run has not answered for both."""
    if run.parts:
        return "what is pooled here is of several models, each with a val of its own: see the reports of the parts"
    return "both must have been evaluated"


def _errors(run: RunEvidence) -> Iterator[str]:
    main = run.main
    scores = main.scores()
    confidence, right = scores.probabilities.max(axis=1), scores.predicted == scores.labels
    yield _figure(f"How sure the model was on {main.split}", charts.score_histogram(confidence, right))
    wrong = np.flatnonzero(~right)
    if not len(wrong):
        yield f"<p>{text(f'There is no error on {main.split}.')}</p>"
        return
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MOST_ERRORS]
    names = _names(run, main)
    yield table(
        f"The {len(chosen)} surest of {len(wrong):,} errors on {main.split}.",
        ["image", "true", "predicted", "confidence"],
        [
            [
                names[int(main.ids[row])],
                main.classes[scores.labels[row]],
                main.classes[scores.predicted[row]],
                f"{confidence[row]:.3f}",
            ]
            for row in chosen
        ],
        folded=run.names.real,
    )


def _names(run: RunEvidence, answers: SplitAnswers) -> dict[int, str]:
    """What images are called, by id."""
    patients: Sequence[str | None] = run.patients[answers.split] or [None] * len(answers.ids)
    rows = zip(answers.ids.tolist(), answers.sources, patients, strict=True)
    return {image_id: run.names.image(image_id, source, patient) for image_id, source, patient in rows}


def _maps(run: RunEvidence) -> Iterator[str]:
    if not run.cams:
        uri = run.store.child("parts").child(run.parts[0]["name"]).uri if run.parts else run.store.uri
        why = "Maps are made of one model, a part's" if run.parts else "No class activation maps were made of this run"
        yield (
            f"<p>{why}. To make them, and a page with them:</p>\n"
            f"<pre>{text(f'xdist-train cam {uri}')}\n{text(f'xdist-train report {uri}')}</pre>"
        )
        return
    for cam in run.cams:
        yield from _job(run, cam)


def _job(run: RunEvidence, cam: CamSummary) -> Iterator[str]:
    values = cam.values
    what = f"{values['method']} maps at layer {values['layer']}, {values['n_images']:,} images of {values['split']}"
    yield f"<h3>{text(what)}</h3>"
    if values["localisation"]:
        yield _localisation(values["localisation"])
    if values["faithfulness"]:
        yield _faithfulness(values["faithfulness"])
    yield _shortcut(values["shortcut"])
    answers = run.answers.get(values["split"])
    shots = list(gallery(cam, _names(run, answers) if answers else {}))
    if shots:
        yield "<p>Pictures: a click, a tap or the Enter key lays the map over a picture, and takes it away.</p>"
        yield from shots


def _localisation(found: dict[str, Any]) -> str:
    parts = {"all classes": found["pooled"], **found["per_class"]}
    heads = ["class", "images", "pointing game", *(f"better than {name} by" for name in _BASELINES.values())]
    rows = [
        [
            name,
            str(part["n"]),
            figure_text(part["pointing_game"]),
            *(figure_text(part["pointing_game"][key]["difference"]) for key in _BASELINES),
            figure_text(part["energy_inside"]),
            figure_text(part["iou"]),
        ]
        for name, part in parts.items()
    ]
    caption = (
        "Do maps lie on the lesions? Images with a mask, the map of the true class. Pointing game: its maximum lies in "
        "the mask, grown by half a cell of the map. 95 % intervals over patients; differences are paired."
    )
    return table(caption, [*heads, "energy inside", "overlap (IoU)"], rows, folded=False)


def _faithfulness(found: dict[str, Any]) -> str:
    share = found["share_removed"]
    caption = (
        f"Does the model need what the map shows? Fall of the answer's probability when {share:.0%} of the pixels are "
        f"blurred away ({found['n']} images)."
    )
    rows = [[words, figure_text(found[key])] for key, words in _REMOVALS.items()]
    return table(caption, ["blurred", "fall of probability"], rows, folded=False)


def _shortcut(found: dict[str, Any]) -> str:
    rows = [
        [words, "–" if found[key]["share"] is None else f"{found[key]['share']:.1%}", f"{found[key]['area']:.1%}"]
        for key, words in _PLACES.items()
    ]
    heads = ["place", "share of the maps", "share of the pictures"]
    caption = "Does the model look where nothing should be? An even map has equal shares."
    return table(caption, heads, rows, folded=False)


def _training(run: RunEvidence) -> Iterator[str]:
    if run.parts:
        metric = TITLES[run.record["metric"]]
        yield table(
            f"The parts, each a run of its own under {run.store.uri}/parts, with its own {metric} on test.",
            ["part", "status", metric],
            [
                [part["name"], part["status"], "–" if part["value"] is None else f"{part['value']:.3f}"]
                for part in run.parts
            ],
        )
        return
    epochs = [row for row in run.history if row["kind"] == "epoch"]
    if not epochs:
        yield "<p>The run has no history of epochs.</p>"
        return
    selected = run.record["selected"]["epoch"] if run.record["selected"] else None
    metric = run.config.train.metric
    yield _figure("Learning curves", charts.learning_curves(epochs, metric, selected))
    if run.record["stopped_early"]:
        yield f"<p>{text(f'It stopped early: {metric} did not improve any more.')}</p>"


def _time(run: RunEvidence) -> Iterator[str]:
    seconds = {name: time for name, time in run.record["seconds"].items() if name != "job"}
    if seconds:
        yield _figure("Parts of the run, in seconds of rank 0", charts.times(seconds))
        train = seconds.get("train") or 0.0
        if train:
            share = seconds.get("data_wait", 0.0) / train
            yield f"<p>{text(f'Training waited for data in {share:.1%} of its time.')}</p>"
    if run.parts:
        yield f"<p>Work of all workers: {run.record['worker_seconds']:.0f} s.</p>"
        return
    facts = {
        "workers": ", ".join(str(group["workers"]) for group in run.record["groups"]) or "–",
        "starts of workers": str(run.record["group_starts"]),
        "work of all workers": f"{run.record['worker_seconds']:.0f} s",
    }
    yield table("The run.", ["fact", "value"], [[name, value] for name, value in facts.items()], folded=False)


def _configuration(run: RunEvidence) -> Iterator[str]:
    record = run.record
    yield f"<p>To train it again:</p>\n<pre>{text(record['command'])}</pre>"
    facts = {
        "code": record["code_revision"],
        **({} if run.parts else {"seed": str(run.config.train.seed)}),
        **{name: str(value) for name, value in record["versions"].items()},
        **{name: str(value) for name, value in record["hardware"].items()},
    }
    yield table("What it ran with.", ["fact", "value"], [[name, value] for name, value in facts.items()])
    yield f"<details><summary>config.yaml</summary><pre>{_lines(run.config_text)}</pre></details>"


def _side_by_side(*figures: str) -> str:
    return f'<div class="charts">{"".join(figures)}</div>'


def _lines(words: str) -> str:
    return "\n".join(text(line) for line in words.splitlines())


def _figure(title: str, picture: str) -> str:
    return f"<figure>\n<figcaption>{text(title)}</figcaption>\n{picture}\n</figure>"
