"""The shim: torchvision and timm import, whatever build of torch is beside them."""

from __future__ import annotations

import subprocess
import sys

import torch

from xdist_train.models.torchvision_shim import (
    declare_missing_operators,
    import_timm,
    import_torchvision_models,
)


def test_torchvision_and_timm_import() -> None:
    """Both libraries import through the shim."""
    assert (import_torchvision_models().__name__, import_timm().__name__) == ("torchvision.models", "timm")


def test_declaring_twice_changes_nothing() -> None:
    """The schemas are declared once a process."""
    assert declare_missing_operators() is declare_missing_operators()


def test_the_shim_acts_only_where_torchvision_fails_by_itself() -> None:
    """Schemas are declared exactly where a bare `import torchvision` does not work."""
    bare = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
    assert (bare.returncode != 0) == (declare_missing_operators() is not None)


def test_the_operators_have_a_schema_after_it() -> None:
    """`torchvision::nms` is known to torch."""
    import_torchvision_models()
    assert torch.ops.torchvision.nms.default._schema.name == "torchvision::nms"
