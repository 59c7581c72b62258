"""Which process group Ray Train makes for the workers of a run."""

from __future__ import annotations

from ray.train.backend import Backend
from ray.train.torch import TorchConfig

__all__ = ["process_group"]


class _NoGroup(TorchConfig):  # type: ignore[misc]  # Ray has no types
    """A group of processes has a thread that looks for news all the time, and a start of its own."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray sets up in the workers before they train: nothing."""
        return Backend  # type: ignore[no-any-return]


def process_group(most_workers: int, *, use_gpu: bool) -> TorchConfig:
    """None for one worker on a CPU, which meets nobody; else Ray's own, by NCCL or gloo."""
    return _NoGroup() if most_workers == 1 and not use_gpu else TorchConfig()
