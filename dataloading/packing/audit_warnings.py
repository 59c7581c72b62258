"""The audit's figures as sentences: what a user should know before training, and what to do about it.

One function a subject; each yields a sentence only where its figure calls for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["build_warnings", "nameless"]

Audit = dict[str, Any]

_MUCH_IMBALANCE = 3.0
_FEW_IMAGES = 100
_RESPLIT = "data.split=given_test keeps its test and draws val by patient from the rest; data.split=patient draws all."
_PERSONAL = {"exif", "xmp", "iptc", "comment", "text", "application", "thumbnail", "trailing"}


def build_warnings(audit: Audit) -> list[str]:
    """Sentences for the user, the gravest first."""
    return [sentence for subject in _SUBJECTS for sentence in subject(audit)]


def nameless(audit: Any) -> Any:
    """An audit without the names that it gives as examples, which tell of patients."""
    if isinstance(audit, dict):
        return {key: [] if key == "names" else nameless(value) for key, value in audit.items()}
    return audit


def _size_baseline(audit: Audit) -> Iterator[str]:
    baseline = audit["size_baseline"]
    if baseline and baseline["above_chance"]:
        yield (
            "Width and height alone tell the class better than chance: on "
            f"{_many(baseline['num_images'], 'image')} of val and test, balanced accuracy "
            f"{baseline['balanced_accuracy']:.2f} (chance {baseline['chance']:.2f}), accuracy "
            f"{baseline['accuracy']:.2f} (always naming the largest class: {baseline['majority_accuracy']:.2f}). "
            "A network can learn the size instead of the disease; compare its figures with these."
        )


def _given_splits(audit: Audit) -> Iterator[str]:
    shared = audit["given_splits_share"]
    if count := shared["patients"]["count"]:
        share = shared["test_images_of_train_patients"] / max(shared["test_images"], 1)
        yield (
            f"The set's own splits share {_many(count, 'patient')}{_such_as(shared['patients'])}; {share:.0%} of "
            "its test images are of patients in train. Where they share, figures on data.split=given are too good; "
            "data.split=patient keeps patients apart."
        )
    if count := shared["duplicates"]["count"]:
        yield (
            f"{_many(count, 'pair')} of equal pictures lie in two of the set's own splits"
            f"{_such_as(shared['duplicates'])}; data.split=patient keeps them together."
        )
    counts = {split: sum(classes.values()) for split, classes in audit["given_split_counts"].items()}
    if {"train", "test"} == counts.keys():
        yield f"The set has no val of its own, so data.split=given cannot be used. {_RESPLIT}"
    for split, count in counts.items():
        if split != "train" and 0 < count < _FEW_IMAGES:
            yield (
                f"The set's own {split} has {_many(count, 'image')}: one of them is {100 / count:.1f} points of "
                f"accuracy. {_RESPLIT if split == 'val' else 'data.split=patient draws a test anew.'}"
            )


def _patient_split(audit: Audit) -> Iterator[str]:
    for split, classes in audit["patient_split_counts"].items():
        if empty := [name for name, count in classes.items() if not count]:
            yield f"The patient split has no image of {', '.join(empty)} in {split}: too few patients."


def _patients(audit: Audit) -> Iterator[str]:
    patients = audit["patients"]
    both, by_stem = patients["in_two_classes"], patients["found_by"].get("stem", 0)
    if both["count"]:
        yield (
            f"{_many(both['count'], 'patient')} of {patients['count']:,} have images in two classes or more"
            f"{_such_as(both)}; each is kept whole in one split."
        )
    if by_stem:
        yield (
            f"{_many(by_stem, 'file name')} of {sum(patients['found_by'].values()):,} name no patient by a known "
            "rule, so each counts as a patient of its own; if some show the same patient, set pack.patient, or splits "
            "will leak."
        )


def _duplicates(audit: Audit) -> Iterator[str]:
    exact, near = audit["duplicates"], audit["near_duplicates"]
    if exact["count"]:
        yield (
            f"{_many(exact['count'], 'file')} repeat another byte for byte{_such_as(exact)}, "
            f"{exact['in_two_classes']:,} of them under another class; copies stay in one split."
        )
    if near.get("count"):
        yield (
            f"{_many(near['count'], 'pair')} of files show the same picture ({near['mirrored']:,} mirrored, "
            f"{near['in_two_classes']:,} under two classes){_such_as(near)}; each stays in one split."
        )
    if between := near.get("between_patients", {}).get("count"):
        yield f"{_many(between, 'such pair')} have different patients in their names; those patients are kept together."
    if near.get("complete") is False:
        yield "So many pictures look alike that not all of them were compared: some near-duplicates may not be known."


def _names(audit: Audit) -> Iterator[str]:
    if count := audit["same_name"]["count"]:
        yield f"{_many(count, 'file name')} occur in two folders or more{_such_as(audit['same_name'])}."


def _imbalance(audit: Audit) -> Iterator[str]:
    imbalance = audit["imbalance"]
    if imbalance["ratio"] >= _MUCH_IMBALANCE:
        yield (
            f"{imbalance['largest']} has {imbalance['ratio']:.1f} times as many images as {imbalance['smallest']}; "
            "look at balanced accuracy, and see sampler.alpha."
        )


def _metadata(audit: Audit) -> Iterator[str]:
    kinds = {kind: count for kind, count in audit["metadata"].items() if kind in _PERSONAL}
    if kinds:
        listed = ", ".join(f"{kind} in {_many(count, 'file')}" for kind, count in kinds.items())
        yield f"The source files carry metadata that can name a person ({listed}); the packed images do not."


def _pictures(audit: Audit) -> Iterator[str]:
    pictures, total = audit["pictures"], sum(audit["class_counts"].values())
    if 0 < pictures["coloured"] < total:
        shown = "in three channels" if pictures["channels"] == 3 else "in gray"
        yield f"{_many(pictures['coloured'], 'picture')} of {total:,} have colours; all are shown {shown}."


def _masks(audit: Audit) -> Iterator[str]:
    masks = audit["masks"]
    if masks["bad"]["count"]:
        count = masks["bad"]["count"]
        yield f"{_many(count, 'mask')} do not fit and were left out{_such_as(masks['bad'])}; the images stay."
    if masks["without_image"]:
        yield f"{_many(masks['without_image'], 'mask')} belong to no packed image."


def _quarantine(audit: Audit) -> Iterator[str]:
    quarantine = audit["quarantine"]
    if quarantine["count"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in quarantine["by_reason"].items())
        yield f"{_many(quarantine['count'], 'file')} were left out ({reasons}); quarantine.parquet names each."


_SUBJECTS = (
    _size_baseline, _given_splits, _patient_split, _patients, _duplicates, _names, _imbalance, _metadata, _pictures,
    _masks, _quarantine,
)  # fmt: skip


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _such_as(named: Audit) -> str:
    return f" (such as {named['names'][0]})" if named["names"] else ""
