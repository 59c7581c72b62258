"""The least that Ray Train can be asked for: two workers of a function that does nothing.

bare_start.py FILE FOLDER      FILE gets a line a moment; FOLDER is the trainer's storage
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from tests.bench.noted_start import note

__all__ = ["do_nothing"]


def do_nothing(values: dict[str, Any]) -> None:
    """That it was called is noted."""
    import ray.train

    note(Path(values["path"]), "worker begins", ray.train.get_context().get_world_rank())


def _main(path: Path, folder: str) -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from tests.bench import bare_start  # by its name, as workers import it

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    note(path, "Ray runs")
    trainer = TorchTrainer(
        bare_start.do_nothing,
        train_loop_config={"path": str(path)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="bare", storage_path=folder),
    )
    trainer.fit()
    ray.shutdown()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
