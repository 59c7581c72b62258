"""The card's head in YAML, by which the Hugging Face Hub lists models and their figures. Pure.

Its form: https://huggingface.co/docs/hub/model-cards, and for `model-index` github.com/huggingface/hub-docs,
modelcard.md.
"""

from __future__ import annotations

from typing import Any

import yaml

from xdist_train.evidence.answers import SplitAnswers
from xdist_train.evidence.metrics import FIGURES
from xdist_train.evidence.report.reading import RunEvidence
from xdist_train.evidence.tables import TITLES

__all__ = ["front_matter"]

_TASK = "image-classification"
_LIBRARY = "xdist-train"
_HUB_NAMES = {"macro_f1": "f1", "mcc": "matthews_correlation", "auroc_macro": "roc_auc"}
"""Figures that the Hub knows by another name."""


def front_matter(run: RunEvidence, license_id: str) -> str:
    """Between its two lines of dashes."""
    model = run.config.model.backbone
    values = {
        "license": license_id or "unknown",
        "library_name": _LIBRARY,
        "pipeline_tag": _TASK,
        "tags": [_LIBRARY, _TASK, "safetensors", model],
        "metrics": [_HUB_NAMES.get(name, name) for name in FIGURES],
        "model-index": [{"name": run.store.name, "results": [_result(run, mine) for mine in run.answers.values()]}],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def _result(run: RunEvidence, answers: SplitAnswers) -> dict[str, Any]:
    fingerprint = run.record["fingerprint"]
    return {
        "task": {"type": _TASK},
        "dataset": {
            "name": f"packed {fingerprint[:16]}",
            "type": "xdist-train-packed",
            "split": answers.split,
            "revision": fingerprint,
        },
        "metrics": [
            {"type": _HUB_NAMES.get(name, name), "name": TITLES[name], "value": answers.report[name]["value"]}
            for name in FIGURES
            if answers.report[name]["value"] is not None
        ],
    }
