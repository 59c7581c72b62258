"""Where a model's ONNX file goes: beside its weights, listed in the run's `run.json`, or wherever it is wished.

Knows nothing of what is in it.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from cluster.runs import ONNX, RUN, add_object, read_record, require_ended
from cluster.store import open_parent, open_store
from xdist_train.models.export import find_model, load_model
from xdist_train.models.onnx_file import build_onnx

__all__ = ["publish_onnx"]


def publish_onnx(uri: str, out: str = "") -> str:
    """Export the published model of a run or of a bare `model` folder; where the file lies.

    Args:
        uri: the folder.
        out: a path or URI of the file; empty puts it beside the weights.

    Raises:
        InputError: no model, a run that is still going on, ONNX not installed, or a model that cannot be exported. What
            was there before is left.
    """
    run, name = open_store(uri), PurePosixPath(ONNX).name
    is_run = run.exists(RUN)
    if is_run and not out:
        require_ended(read_record(run), uri)
    target, key = open_parent(out) if out else (find_model(uri)[0], name)
    data = build_onnx(*load_model(uri))
    if is_run and not out:
        add_object(run, ONNX, data)
    else:
        target.write(key, data)
    return target.locate(key)
