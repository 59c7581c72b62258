"""Makes torchvision importable beside a CPU-only torch. All that needs torchvision or timm comes here first.

PyPI's torchvision for Linux is a CUDA build. Beside a CPU-only torch its operator library does not load,
and `import torchvision` (so timm and grad-cam too) fails with "operator torchvision::nms does not exist",
because it describes two of those operators unconditionally. Declaring their schemas is enough: no
classifier calls them. Knows nothing of models.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["declare_missing_operators", "import_timm", "import_torchvision_models"]

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def declare_missing_operators() -> torch.library.Library | None:
    """Declare torchvision's operator schemas where its own library cannot; None where it can.

    The cache keeps the library object alive: torch withdraws the schemas with it.
    """
    if _operator_library_loads():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def import_torchvision_models() -> ModuleType:
    """The module `torchvision.models`."""
    declare_missing_operators()
    return importlib.import_module("torchvision.models")


def import_timm() -> ModuleType:
    """The module `timm` (it imports torchvision)."""
    declare_missing_operators()
    return importlib.import_module("timm")


def _operator_library_loads() -> bool:
    """Load `torchvision/_C.so` as torchvision itself is about to; a second load of it does nothing."""
    package = importlib.util.find_spec("torchvision")
    assert package is not None, "torchvision is not installed"
    assert package.origin is not None, "torchvision has no files"
    for path in Path(package.origin).parent.glob("_C*.*"):
        try:
            torch.ops.load_library(path)
        except OSError:
            continue
        return True
    return False
