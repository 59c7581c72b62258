"""`model/README.md`: a run's folder becomes a model card, whole or not at all."""

from __future__ import annotations

from cluster.errors import InputError
from cluster.runs import CARD, add_object, require_ended
from cluster.store import open_parent
from dataloading.dataset import open_dataset
from dataloading.splits import SPLIT_COLUMNS
from xdist_train.evidence.card.front_matter import front_matter
from xdist_train.evidence.card.sections import sections
from xdist_train.evidence.card.splits import SplitFacts, count_splits
from xdist_train.evidence.report.reading import RunEvidence, read_evidence
from xdist_train.models.export import ModelDescription, find_model

__all__ = ["model_card", "write_card"]


def write_card(uri: str, *, license_id: str = "", out: str = "") -> str:
    """Make the model card of a run; where it lies.

    Args:
        uri: of the run folder.
        license_id: of the weights, as the Hugging Face Hub spells it; empty says that it is unknown.
        out: path or URI of a file to write instead of the run's `model/README.md`.

    Raises:
        InputError: no run, one that is still going on, no model, no figures yet, or something that cannot be read.
    """
    run = read_evidence(uri, real_names=False)
    if not out:
        require_ended(run.record, uri)
    target, key = open_parent(out) if out else (run.store, CARD)
    _, description = find_model(uri)
    if description.fingerprint != run.record["fingerprint"]:
        raise InputError(f"{uri!r}: its model was trained on another data set than run.json says. Copy the run again.")
    data = model_card(run, description, license_id).encode()
    if out:
        target.write(key, data)
    else:
        add_object(target, key, data)
    return target.locate(key)


def model_card(run: RunEvidence, description: ModelDescription, license_id: str = "") -> str:
    """The page."""
    return front_matter(run, license_id) + "\n" + "\n\n".join(sections(run, description, _splits(run))) + "\n"


def _splits(run: RunEvidence) -> SplitFacts | None:
    """None where the data set is gone."""
    if run.info is None:
        return None
    manifest = open_dataset(run.config.data.uri).read_manifest(list(SPLIT_COLUMNS))
    return count_splits(run.info, manifest, run.record["split"])
