"""What came of a repetition: `repeat.json` and the pooled evidence, from what its parts answered on test.

    name, folds, metric             metric: the figure that it is told by
    parts                           a row a part: name, scheme, split, fold, seed, status, reason, selected_epoch (from
                                    1), and its own figures on test
    schemes                         a row for the folds, and for each split beside them:
      pooled                        figures of all images, {"value", "low", "high"}; `pooled_of` says of which models
      per_seed, over_seeds          each seed's pooled figures; their mean, standard_deviation (n - 1) and n
      per_fold, over_folds          each fold's figures (means over seeds), and the same of these; null without folds
      seeds, missing_seeds          in `pooled`, and not, since parts of them failed
    overlap                         what the set's own splits share (`overlap_of`)

Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dataloading.dataset import Dataset
from dataloading.splits import SPLIT_COLUMNS
from tune_spaces.leaderboard import TrialRow
from tune_spaces.parts import Part, describe_scheme, overlap_of, scheme_ids
from tune_spaces.pooling import average_seeds, join_folds, mean_figures, mean_prior
from xdist_train.evidence.answers import SplitAnswers
from xdist_train.evidence.evaluate import evaluation_report, predictions_table
from xdist_train.evidence.evaluation import Evidence
from xdist_train.evidence.metrics import FIGURES, point_figures
from xdist_train.evidence.tables import TITLES

__all__ = ["Result", "build_result", "notes_of"]

_SCHEMA = 1
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Result:
    """`repeat.json`, and the evidence of its first scheme; None where no seed of that is whole."""

    values: dict[str, Any]
    evidence: Evidence | None


def build_result(
    name: str,
    rows: Sequence[tuple[Part, TrialRow]],
    answers: Mapping[str, SplitAnswers],
    dataset: Dataset,
    *,
    metric: str,
    resamples: int,
) -> Result:
    """Everything that is said of a repetition.

    Args:
        rows: of all parts.
        answers: on test, of the parts that finished, by name.
        metric: the figure that the repetition is told by.
        resamples: of patients, for the 95 % intervals.

    Raises:
        InputError: answers that are not of each image of their scheme once.
    """
    manifest = dataset.read_manifest(list(SPLIT_COLUMNS))
    folds = sum(part.fold is not None and part.seed == rows[0][0].seed for part, _ in rows)
    pooled = {
        scheme: _pool([part for part, _ in rows if part.scheme == scheme], answers, manifest, dataset, resamples)
        for scheme in dict.fromkeys(part.scheme for part, _ in rows)
    }
    values = {
        "schema": _SCHEMA,
        "name": name,
        "folds": folds,
        "metric": metric,
        "parts": [_part_row(part, row, answers.get(part.name)) for part, row in rows],
        "schemes": [
            {"scheme": scheme, "description": describe_scheme(scheme, folds), **found.values}
            for scheme, found in pooled.items()
        ],
        "overlap": overlap_of(dataset.info.audit),
    }
    return Result(values, next(iter(pooled.values())).evidence)


def _part_row(part: Part, row: TrialRow, answers: SplitAnswers | None) -> dict[str, Any]:
    return {
        "name": part.name,
        "scheme": part.scheme,
        "split": part.split,
        "fold": part.fold,
        "seed": part.seed,
        "status": row.status,
        "reason": row.reason,
        "selected_epoch": row.selected_epoch,
        "figures": _figures(answers) if answers else None,
    }


def _figures(answers: SplitAnswers) -> Figures:
    return {name: answers.report[name]["value"] for name in FIGURES}


def _pool(
    parts: Sequence[Part], answers: Mapping[str, SplitAnswers], manifest: pa.Table, dataset: Dataset, resamples: int
) -> Result:
    """One scheme."""
    of_seed = {seed: [part for part in parts if part.seed == seed] for seed in dict.fromkeys(p.seed for p in parts)}
    whole = {
        seed: {part.name: answers[part.name] for part in mine}
        for seed, mine in of_seed.items()
        if all(part.name in answers for part in mine)
    }
    seeds = {"seeds": list(whole), "missing_seeds": [seed for seed in of_seed if seed not in whole]}
    if not whole:
        empty = ("pooled", "pooled_of", "per_seed", "over_seeds", "per_fold", "over_folds", "n_images", "n_patients")
        return Result({**seeds, **dict.fromkeys(empty)}, None)
    ids = scheme_ids(manifest, dataset.info, parts[0].scheme)
    patients = manifest["patient"].take(pa.array(ids)).to_pylist()
    joined = {seed: join_folds(mine, ids) for seed, mine in whole.items()}
    pooled = average_seeds(list(joined.values()))
    reports = [part.report for mine in whole.values() for part in mine.values()]
    report = evaluation_report(
        pooled.labels,
        pooled.probabilities,
        patients,
        pooled.classes,
        prior=mean_prior(reports),
        resamples=resamples,
    )
    sources = dataset.read_manifest(["source"])["source"].take(pa.array(ids)).to_pylist()
    table = predictions_table(ids, sources, pooled.labels, pooled.probabilities, pooled.classes)
    of_seeds = {seed: point_figures(mine.scores(patients)) for seed, mine in joined.items()}
    of_folds = _fold_figures(parts, whole)
    values = {
        **seeds,
        "n_images": report["n_images"],
        "n_patients": report["n_patients"],
        "pooled": {name: report[name] for name in FIGURES},
        "pooled_of": _pooled_of(list(whole)),
        "per_seed": [{"seed": seed, "figures": figures} for seed, figures in of_seeds.items()],
        "over_seeds": mean_figures([*of_seeds.values()]),
        "per_fold": [{"fold": fold, "figures": figures} for fold, figures in of_folds.items()] or None,
        "over_folds": mean_figures([*of_folds.values()]) if of_folds else None,
    }
    return Result(values, Evidence(report, table))


def _fold_figures(parts: Sequence[Part], whole: Mapping[int, Mapping[str, SplitAnswers]]) -> dict[int, Figures]:
    """Figures of each fold, as means over the seeds that are whole; none without folds."""
    of_fold: dict[int, list[Figures]] = {}
    for part in parts:
        if part.fold is not None and part.seed in whole:
            of_fold.setdefault(part.fold, []).append(_figures(whole[part.seed][part.name]))
    return {fold: _means(figures) for fold, figures in of_fold.items()}


def _means(rows: Sequence[Figures]) -> Figures:
    return {name: spread["mean"] for name, spread in mean_figures(rows).items()}


def _pooled_of(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"models of seed {seeds[0]}"
    return f"mean probability of the models of seeds {_listed(seeds)}: an ensemble of {len(seeds)}"


def notes_of(values: Mapping[str, Any]) -> list[str]:
    """What must be weighed with the figures, a sentence or two each; said on the terminal, in `run.json` and its page.

    Args:
        values: `repeat.json`.
    """
    first, notes = values["schemes"][0], []
    if first["pooled"]:
        notes.append(_what_is_pooled(first, values["metric"]))
    cut = [scheme for scheme in values["schemes"] if scheme["missing_seeds"]]
    notes += [_what_is_missing(scheme, values["parts"]) for scheme in cut]
    own = [scheme for scheme in values["schemes"] if scheme["scheme"] in ("given", "given_test")]
    if own and values["overlap"]:
        notes.append(_what_is_shared(values["overlap"]))
    return notes


def _what_is_pooled(scheme: Mapping[str, Any], metric: str) -> str:
    if scheme["per_fold"]:
        said = f"Figures on test are pooled over {scheme['description']}: every image is in them, judged by models "
        said += "that saw neither it nor its patient."
    else:
        said = f"Figures on test are of {scheme['description']}."
    if len(scheme["seeds"]) > 1:
        said += f" A probability is the {scheme['pooled_of']}, which as a rule does better than one of them."
    for what in ("seeds", "folds"):
        spread = scheme[f"over_{what}"] and scheme[f"over_{what}"][metric]
        if spread and spread["n"] > 1:
            figures = f"{spread['mean']:.4f} ± {spread['standard_deviation']:.4f}"
            said += f" Single {what} have {TITLES[metric]} {figures} (mean, standard deviation of {spread['n']})."
    return f"{said} Intervals are over patients, with the models as they are."


def _what_is_missing(scheme: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> str:
    missing = [part for part in parts if part["scheme"] == scheme["scheme"] and part["seed"] in scheme["missing_seeds"]]
    reasons = "; ".join(
        f"{part['name']}: {part['reason'] or part['status']}" for part in missing if part["status"] != "finished"
    )
    seeds = f"seed {_listed(scheme['missing_seeds'])}"
    out = "is not in the figures" if scheme["pooled"] else "is not whole, so there are no figures"
    return f"{scheme['description']}: {seeds} {out}, since these did not finish: {reasons}."


def _what_is_shared(overlap: Mapping[str, int]) -> str:
    images, patients, pairs = overlap["test_images"], overlap["patients"], overlap["duplicates"]
    share = overlap["test_images_of_train_patients"] / max(images, 1)
    if not (patients or pairs):
        return "The set's own splits share no patient and no equal picture that `pack` found."
    return (
        f"The set's own splits share {patients:,} patients ({share:.0%} of their {images:,} test images are of "
        f"patients in train) and {pairs:,} pairs of equal pictures: figures on them are too good by what a model "
        "recognises. Where patients are kept apart there is none of that, but test images are others, so a difference "
        "is not due to it alone."
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
