"""Who gets a process group, on a real cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xdist_train.training.process_group import process_group


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [1, 2])
def test_one_worker_has_no_process_group(workers: int, ray_cluster: Any, tmp_path: Path) -> None:
    """Two have one, of two."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def check() -> None:
        import torch.distributed as dist

        size = dist.get_world_size() if dist.is_initialized() else 1
        assert (size, dist.is_initialized()) == (workers, workers > 1)

    TorchTrainer(
        check,
        torch_config=process_group(workers, use_gpu=False),
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(storage_path=str(tmp_path)),
    ).fit()


@pytest.mark.parametrize(("workers", "use_gpu"), [(1, True), (2, False), (2, True)])
def test_all_others_have_ray_s_own(workers: int, use_gpu: bool) -> None:
    """A GPU's worker is left as Ray has it."""
    own, lone = process_group(workers, use_gpu=use_gpu), process_group(1, use_gpu=False)
    assert own.backend_cls is not lone.backend_cls
    assert "_TorchBackend" == own.backend_cls.__name__
