"""One Ray Train job: built from a run's order, run in a thread, and what it left behind when it ended."""

from __future__ import annotations

import re
import threading
from typing import Any

from cluster.processes import KEEPS_FREED_MEMORY
from cluster.runs import CHECKPOINTS
from cluster.session import ClusterResources, set_start_limit
from cluster.store import ray_filesystem
from xdist_train.config import Config, ScaleConfig
from xdist_train.training.messages import Failure
from xdist_train.training.preflight import Prepared

__all__ = ["Job", "build_trainer", "wait_limit", "words_of"]

_WAIT_S, _WAIT_AUTOSCALER_S = 120.0, 1800.0
"""Ray needs a minute to give up a host that falls silent; until then its room seems taken."""
_GROUP_ERROR = re.compile(r"gloo/transport|NCCL error|connection closed by peer|ProcessGroup", re.IGNORECASE)
_LOOK_S = 5.0
"""Ray looks anew at the cluster this often while a group waits for room (the start of processes is not in it)."""


class Job:
    """`trainer.fit()` in a thread, so that the main thread can draw and hear signals."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.summary: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._fit, name="ray-train-fit", daemon=True)
        self._thread.start()

    def running(self, wait_s: float) -> bool:
        """Wait at most so long for the end; whether it goes on."""
        self._thread.join(wait_s)
        return self._thread.is_alive()

    @property
    def finished(self) -> bool:
        """Whether it ended with its work done, or with a reason that would come again."""
        return self.summary is not None and self.summary["status"] != "stopped"

    def lost(self, hang: str) -> Failure:
        """What Ray gave up on; an error that is not Ray's is a defect and is raised.

        Args:
            hang: what was said of the last hang, if any: then it is the reason.
        """
        from ray.exceptions import RayError
        from ray.train import TrainingFailedError

        assert self._error is not None
        if not isinstance(self._error, TrainingFailedError | RayError):
            raise self._error
        text = f"Ray gave up on the run: {words_of(self._error)}"
        return Failure(kind="hang", message=f"{hang}\n{text}") if hang else Failure(kind="lost_workers", message=text)

    def _fit(self) -> None:
        try:
            self.summary = self._trainer.fit().return_value
        except Exception as error:  # noqa: BLE001 - the thread's entry point; the main thread says what it was
            self._error = error


def words_of(error: BaseException) -> str:
    """What Ray's error is about, on one line: which worker's process ended, or what it said, without Ray's traces."""
    from ray.exceptions import RayActorError

    causes = {rank: _cause(failure) for rank, failure in sorted(getattr(error, "worker_failures", {}).items())}
    dead = [rank for rank, cause in causes.items() if isinstance(cause, RayActorError)]
    if dead:  # what the others say is only that they miss it
        return f"the process of worker {', '.join(map(str, dead))} ended, or its node did"
    missing = [rank for rank, cause in causes.items() if _GROUP_ERROR.search(str(cause))]
    if missing:
        return f"worker {', '.join(map(str, missing))} lost the connection to another"
    cause = next(iter(causes.values()), _cause(error))
    said = " ".join(str(cause).split())[:400] or type(cause).__name__
    return f"worker {next(iter(causes))}: {said}" if causes else said


def _cause(error: BaseException) -> BaseException:
    for wrapper in ("controller_failure", "health_check_failure", "_base_exc"):
        error = getattr(error, wrapper, None) or error
    return error


def wait_limit(scale: ScaleConfig, resources: ClusterResources) -> float:
    """Seconds to wait for room for the workers."""
    return scale.wait_s or (_WAIT_AUTOSCALER_S if resources.autoscaling else _WAIT_S)


def build_trainer(
    config: Config, prepared: Prepared, monitor: Any, *, attempt: int, use_gpu: bool, wait_s: float
) -> Any:
    """The trainer of a run; a second one for the same run goes on where the first stood."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from xdist_train.training.group_events import GroupEvents
    from xdist_train.training.process_group import process_group
    from xdist_train.training.worker import WorkerOrder, run_worker

    scale, folder = config.scale, prepared.folder
    order = WorkerOrder(
        config=config,
        run_uri=folder.store.uri,
        driver=folder.driver,
        monitor=monitor,
        micro_batch_size=prepared.micro_batch_size,
        attempt=attempt,
        weights=prepared.weights,
    )
    filesystem, path = ray_filesystem(folder.store.uri)
    elastic = scale.least < scale.most
    set_start_limit(_LOOK_S)
    return TorchTrainer(
        run_worker,
        train_loop_config={"order": order},
        torch_config=process_group(scale.most, use_gpu=use_gpu),
        scaling_config=ScalingConfig(
            num_workers=(scale.least, scale.most) if elastic else scale.most,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": scale.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            failure_config=FailureConfig(max_failures=config.failure.max_failures),
            callbacks=[GroupEvents(monitor, wait_s, scale.least)],
            worker_runtime_env={} if use_gpu else {"env_vars": KEEPS_FREED_MEMORY},
        ),
    )
