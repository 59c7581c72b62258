"""The arithmetic of a run by name: type of weights and input, autocast, loss scaling. Knows no model and no data."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

__all__ = ["Precision", "resolve_precision"]


@dataclass(frozen=True)
class Precision:
    """Arithmetic of a run: type of weights and input, type of autocast (None: off), loss scaling."""

    weights: torch.dtype
    autocast: torch.dtype | None
    scaled: bool

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """What a forward pass runs in."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)


def resolve_precision(name: str, device: torch.device) -> Precision:
    """The arithmetic that `train.precision` names on a device."""
    if name == "auto" and device.type != "cuda":
        name = "float32"
    if name == "auto":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    table = {
        "float32": Precision(torch.float32, None, False),
        "float64": Precision(torch.float64, None, False),
        "bf16": Precision(torch.float32, torch.bfloat16, False),
        "fp16": Precision(torch.float32, torch.float16, device.type == "cuda"),
    }
    return table[name]
