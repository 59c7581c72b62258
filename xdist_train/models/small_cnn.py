"""Our own compact network: for the demo, for tests and for small sets. Knows no data and no configuration."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["SmallCnn"]

_WIDTHS = (16, 32, 64, 128)
_GROUPS = 8


class SmallCnn(nn.Module):
    """Four residual stages, each halving the side, then global average pooling and one linear layer.

    Images [n, 3, s, s] with s of 32 px or more to logits [n, num_classes]; 0.3 million parameters, about
    50 million multiply-adds at 128 px. Fits lesions that fill a small part of the picture: at 128 px the
    last feature map is still 8 x 8.

    Args:
        num_classes: logits.
        norm: `batch`, or `group`, whose result for an image does not depend on its batch.
    """

    def __init__(self, num_classes: int = 1000, norm: str = "batch") -> None:
        super().__init__()
        width = _WIDTHS[0]
        self.stem = nn.Sequential(_convolution(3, width, 2), _norm(norm, width), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(*(_Stage(narrow, wide, norm) for narrow, wide in pairwise(_WIDTHS)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(_WIDTHS[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        features: Tensor = self.pool(self.stages(self.stem(images))).flatten(1)
        logits: Tensor = self.head(features)
        return logits


class _Stage(nn.Module):
    """Two 3x3 convolutions beside a pooled 1x1 shortcut; halves the side."""

    def __init__(self, narrow: int, wide: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(narrow, wide, 2), _norm(norm, wide), nn.ReLU(inplace=True),
            _convolution(wide, wide, 1), _norm(norm, wide),
        )  # fmt: skip
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(narrow, wide, 1, bias=False), _norm(norm, wide)
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.body(features) + self.shortcut(features))
        return activated


def _convolution(narrow: int, wide: int, stride: int) -> nn.Conv2d:
    convolution = nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _norm(norm: str, width: int) -> nn.Module:
    return nn.GroupNorm(_GROUPS, width) if norm == "group" else nn.BatchNorm2d(width)
