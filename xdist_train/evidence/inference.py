"""A model's answers over batches, and rows of several workers put back in order. Knows no training and no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dataloading.loading.batch import Batch

__all__ = ["Answers", "infer", "softmax"]


@dataclass(frozen=True)
class Answers:
    """Rows of a split (int64 [n]), their labels (int64 [n]) and logits (float [n, classes])."""

    rows: Tensor
    labels: Tensor
    logits: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Answers:
        """The same function on each of the three."""
        return Answers(function(self.rows), function(self.labels), function(self.logits))

    def ordered(self) -> Answers:
        """By row, so that figures do not depend on who answered."""
        order = torch.argsort(self.rows)
        return self.map(lambda values: values[order])


def infer(logits: Callable[[Batch], Tensor], batches: Iterable[Batch], num_classes: int) -> Answers:
    """Logits of each batch, in their order; well defined for no batches at all."""
    rows, labels, outputs = [], [], []
    for batch in batches:
        outputs.append(logits(batch))
        rows.append(batch.rows)
        labels.append(batch.labels)
    if not outputs:
        empty = torch.empty(0, dtype=torch.int64)
        return Answers(empty, empty, torch.empty((0, num_classes)))
    device = outputs[0].device
    return Answers(torch.cat(rows).to(device), torch.cat(labels).to(device), torch.cat(outputs))


def softmax(logits: Tensor) -> npt.NDArray[np.float64]:
    """Probabilities float64 [n, classes] of logits."""
    return torch.softmax(logits.detach().cpu().double(), dim=1).numpy()
