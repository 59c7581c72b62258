"""Which of a model's parameters take gradients, and the modes that follow from it. Knows no optimiser."""

from __future__ import annotations

from torch import nn

from xdist_train.models.heads import find_head
from xdist_train.models.stages import find_stages, parameters_of, part_of

__all__ = ["freeze_backbone", "freeze_stages", "is_frozen", "set_train_mode"]


def freeze_backbone(model: nn.Module) -> None:
    """Stop gradients for all but the head."""
    model.requires_grad_(False)
    find_head(model)[1].requires_grad_(True)


def freeze_stages(model: nn.Module, count: int) -> None:
    """Stop gradients for the first stages from the input.

    Raises:
        ValueError: the model has fewer.
    """
    stages = find_stages(model)
    if count > len(stages):
        raise ValueError(f"{len(stages)} stages stand before the head")
    for stage in stages[:count]:
        for parameter in parameters_of(model, stage):
            parameter.requires_grad_(False)


def is_frozen(model: nn.Module) -> bool:
    """Whether any parameter takes no gradient."""
    return not all(parameter.requires_grad for parameter in model.parameters())


def set_train_mode(model: nn.Module) -> None:
    """Train mode, but frozen stages stay in eval mode: their BatchNorm figures and dropout rest as well.

    Takes the bare module, not its DDP or compiled wrapper.
    """
    if not is_frozen(model):
        model.train()
        return
    model.eval()
    find_head(model)[1].train()
    for stage in find_stages(model):
        if any(parameter.requires_grad for parameter in parameters_of(model, stage)):
            for part in (part_of(model, name) for name in stage):
                if isinstance(part, nn.Module):
                    part.train()
