"""What is known of GPUs by name: memory and speeds as their maker states them, in 16-bit arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from xdist_train.estimation.network import NetworkCost

__all__ = ["DEVICES", "Device"]

_IMAGENET_PIXELS = 500 * 375

_ARITHMETIC = 0.4
"""Share of the stated arithmetic that convolutions reach."""
_PASSES = 6.0
"""Times that an activation crosses the memory's bus in a forward pass, and twice as often in a backward pass: with
these, ResNet-50 at 224 px trains at 2,600 images/s on an A100 (as timm's users see it) and 420 on a T4."""
_MODULE_S = 120e-6
"""Of one module's kernels, forward and backward, however small the batch: a CPU starts them one by one."""


@dataclass(frozen=True)
class Device:
    """A GPU: memory in bytes, bytes a second of it, operations a second, bytes a second between two in a machine.

    `decode` are ImageNet's JPEGs a second, decoded and cropped by DALI; 0 where no such figure is known.
    """

    memory: float
    bandwidth: float
    arithmetic: float
    link: float
    decode: float = 0.0

    def images_per_s(self, cost: NetworkCost, micro_batch_size: int) -> float:
        """That it trains: the slowest of arithmetic, memory, and the CPU that starts its kernels."""
        computing = cost.flops / (_ARITHMETIC * self.arithmetic)
        moved = 2 * _PASSES * (cost.elements + 2 * cost.saved_elements) / self.bandwidth
        return 1 / max(computing, moved, cost.modules * _MODULE_S / micro_batch_size)

    def decoded_per_s(self, pixels: float) -> float:
        """Pictures of so many pixels that it decodes; 0 where nobody knows."""
        return self.decode * _IMAGENET_PIXELS / pixels


DEVICES = {
    "t4": Device(16e9, 0.32e12, 65e12, 12e9),
    "v100": Device(32e9, 0.9e12, 125e12, 120e9),
    "l4": Device(24e9, 0.3e12, 121e12, 12e9),
    "a10g": Device(24e9, 0.6e12, 70e12, 12e9),
    "a100": Device(80e9, 2.0e12, 312e12, 230e9, decode=7_000),
    "h100": Device(80e9, 3.35e12, 989e12, 350e9, decode=19_000),
    "h200": Device(141e9, 4.8e12, 989e12, 350e9, decode=19_000),
}
