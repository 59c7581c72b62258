"""The part of a run that a step changes: model, optimiser, scaler; and the arithmetic of one step.

The loss of a step is sum(w_i * l_i) / sum(w_i) over the whole step on all ranks: each micro batch
contributes sum(w_i * l_i) / (sum of weights of the step), and DDP's mean over ranks is undone.
Knows no loader, no store and no Ray.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from cluster.world import World
from dataloading.loading.batch import Batch, normalise
from xdist_train.config import OptimConfig, TrainConfig
from xdist_train.models.backbones import INPUT_CHANNELS
from xdist_train.models.freezing import set_train_mode
from xdist_train.models.losses import LossFunction
from xdist_train.models.precision import resolve_precision
from xdist_train.training.average import WeightAverage
from xdist_train.training.mixup import Mix, draw_mix
from xdist_train.training.optim import build_optimizer, set_learning_rate
from xdist_train.training.running_figures import RunningFigures

__all__ = ["InputView", "Learner"]


@dataclass(frozen=True)
class InputView:
    """How uint8 pictures become the model's input.

    `mean` and `std` are in [0, 1], one figure or one a channel of the model, none for each picture's own;
    pictures are squares of `image_size` px with `channels` channels, expanded to the model's `model_channels`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    channels: int
    model_channels: int = INPUT_CHANNELS


class Learner:
    """A model under training on one rank.

    Args:
        model: the bare network, frozen as it starts; moved to `device` here, wrapped for DDP where the world has more
            than one rank.
        view: normalisation of its input.
        seed: dropout and mixup are reseeded from (seed, epoch, step, micro batch), so no generator state is kept.
        unfreeze_epoch: from this epoch on, counted from 1, everything trains; 0 is never.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        optim: OptimConfig,
        train: TrainConfig,
        *,
        view: InputView,
        device: torch.device,
        world: World,
        unfreeze_epoch: int = 0,
    ) -> None:
        self.world, self.device, self.view = world, device, view
        self.loss, self.optim, self.train = loss, optim, train
        self.precision = resolve_precision(train.precision, device)
        self.memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        self.model = model.to(device=device, dtype=self.precision.weights, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.average = WeightAverage(self.model, train.ema_decay) if train.ema_decay else None
        self.optimizer = build_optimizer(self.model, optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision.scaled)
        self.rate = optim.lr
        """Of the step before; stages may have parts of it."""
        self._unfreeze_epoch = unfreeze_epoch
        self._held = [parameter for parameter in self.model.parameters() if not parameter.requires_grad]
        self._frozen = True
        self.running_figures = RunningFigures(self.model, world)
        self._build_replica()

    def set_epoch(self, epoch: int) -> None:
        """Let learn what learns in an epoch, counted from 0; the moments of what learned before are kept.

        On every rank alike, before `load` and before a checkpoint: its optimiser holds what learns next.
        """
        frozen = not self._unfreeze_epoch or epoch + 1 < self._unfreeze_epoch
        if frozen == self._frozen:
            return
        self._frozen = frozen
        for parameter in self._held:
            parameter.requires_grad_(not frozen)
            parameter.grad = None
        moments, self.optimizer = self.optimizer.state, build_optimizer(self.model, self.optim)
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter in moments:
                self.optimizer.state[parameter] = moments[parameter]

    def begin_epoch(self, epoch: int) -> None:
        """Be ready for the steps of an epoch, counted from 0; collective."""
        self.set_epoch(epoch)
        if self._replica_frozen != self._frozen:
            self._build_replica()

    def step(self, batches: Iterator[Batch], count: int, weight_sum: float, rate_factor: float) -> Tensor:
        """Run this rank's `count` micro batches of one step and update the weights.

        Args:
            weight_sum: sum of the loss weights over the whole step, on all ranks.
            rate_factor: the learning rate is `optim.lr` times this.

        Returns:
            This rank's part of the step's loss, a scalar on the device; the parts add up to the loss.
        """
        set_train_mode(self.model)
        self.running_figures.begin()
        self.rate = self.optim.lr * rate_factor
        set_learning_rate(self.optimizer, self.rate)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device, dtype=self.precision.weights)
        for number in range(count):
            with self._sync(number == count - 1):
                part = self._part(next(batches)) / weight_sum
                self.scaler.scale(part * self.world.size).backward()
            self.running_figures.add()
            total += part.detach()
        if count == 0:
            self._idle_backward()
        self._update()
        self.running_figures.end(count)
        return total

    @property
    def judged(self) -> nn.Module:
        """The bare model that is evaluated and published: the average of the weights where one is kept."""
        return self.average.model if self.average else self.model

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Logits of the judged model in its present mode: float32 or wider [n, classes]."""
        return self._forward(self.judged, batch.to(self.device, non_blocking=True).images)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
        """Model tensors, the optimiser's state dict, the scaler's state dict."""
        return self.model.state_dict(), self.optimizer.state_dict(), self.scaler.state_dict()

    def load(
        self,
        model: Mapping[str, Tensor],
        optimizer: dict[str, Any],
        scaler: dict[str, Any],
        average: Mapping[str, Tensor],
    ) -> None:
        """The reverse of `state` and `average`, which is empty where none is kept; on every rank alike."""
        # First, since this is what may be refused.
        self.optimizer.load_state_dict(_laid_out(optimizer, self.optimizer))
        self.scaler.load_state_dict(scaler)
        self.model.load_state_dict(model)
        if self.average:
            self.average.model.load_state_dict(average)

    def _part(self, batch: Batch) -> Tensor:
        """sum(w_i * l_i) of a micro batch."""
        self._seed(_micro_batch_seed(self.train.seed, batch))
        batch = batch.to(self.device, non_blocking=True)
        mix = draw_mix(self.train.mixup, len(batch), self.device) if self.train.mixup else None
        logits = self._forward(self.replica, batch.images, mix)
        losses = self.loss.per_sample(logits, batch.labels)
        if mix:
            losses = mix.losses(losses, self.loss.per_sample(logits, batch.labels[mix.partners]))
        return losses.sum()

    def _seed(self, seed: int) -> None:
        """Of the CPU's generator and the GPUs'; `torch.manual_seed` asks every other kind of device too."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def _forward(self, module: nn.Module, images: Tensor, mix: Mix | None = None) -> Tensor:
        view = self.view
        layout = None if mix else self.memory_format
        pixels = normalise(images, view.mean, view.std, view.model_channels, self.precision.weights, layout)
        if mix:
            pixels = mix.pictures(pixels).contiguous(memory_format=self.memory_format)
        with self.precision.context(self.device):
            logits = module(pixels)
        return cast(Tensor, logits).to(self.precision.weights)

    def _sync(self, last: bool) -> AbstractContextManager[object]:
        """Gradients travel with the last micro batch of a step alone."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return nullcontext()
        return self.replica.no_sync()

    def _update(self) -> None:
        if self.train.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _idle_backward(self) -> None:
        """Take part in the reduction with a gradient of zero, leaving BatchNorm's figures alone."""
        self.model.eval()
        shape = (1, self.view.channels, self.view.image_size, self.view.image_size)
        blank = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        logits = self._forward(self.replica, blank)
        self.scaler.scale(logits.sum() * 0).backward()

    def _build_replica(self) -> None:
        """What runs forward in training, for the parameters that learn now; collective."""
        forward: nn.Module = torch.compile(self.model) if self.train.compile else self.model  # type: ignore[assignment]
        # DDP registers hooks on the bare module's parameters; evaluation keeps using the bare module.
        # An earlier wrapper's hooks do nothing after another one's forward.
        self.replica, self._replica_frozen = _replicate(forward, self.world, self.train), self._frozen
        self._settle_buckets()

    def _settle_buckets(self) -> None:
        """One empty round, so that every step after it adds in the same order.

        DDP rebuilds its buckets after the first backward pass; with 3 or more ranks the order of sums
        changes with them. After this, a run and its resumed twin reduce alike.
        """
        if isinstance(self.replica, DistributedDataParallel):
            self._idle_backward()
            self.optimizer.zero_grad(set_to_none=True)


def _replicate(module: nn.Module, world: World, train: TrainConfig) -> nn.Module:
    """DDP where there are ranks to meet; buffers are `RunningFigures`' to move, so it leaves them alone."""
    if world.size == 1:
        return module
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters  # torch 2.13
    options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    replica = DistributedDataParallel(module, **options)
    if train.gradient_traffic == "bf16":
        # DDP refuses torch's own hook by its name where there is no GPU, though gloo sums bfloat16 too.
        replica.register_comm_hook(None, lambda state, bucket: bf16_compress_hook(state, bucket))
    return replica


def _laid_out(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state dict for this optimiser: in its form, its moments in memory as their parameters are.

    A saved state may be of another form (an earlier version's, or another device's), which torch would take over by
    half. The fused form on a CPU goes through both by their place in memory and looks at neither shape nor strides.

    Raises:
        ValueError: a moment has another shape than its parameter, or there are other parameters.
    """
    indices = [index for group in state["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    laid_out: dict[int, dict[str, Any]] = {}
    for index, parameter in zip(indices, parameters, strict=True):
        for name, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor) and value.ndim:
                if value.shape != parameter.shape:
                    raise ValueError(f"{name} of parameter {index} has shape {tuple(value.shape)}")
                value = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
            laid_out.setdefault(index, {})[name] = value
    forms = [{name: group[name] for name in ("foreach", "fused")} for group in optimizer.param_groups]
    groups = [{**group, **form} for group, form in zip(state["param_groups"], forms, strict=True)]
    return {"state": laid_out, "param_groups": groups}


def _micro_batch_seed(seed: int, batch: Batch) -> int:
    words = np.random.SeedSequence([seed, batch.epoch, batch.step, batch.index, 2]).generate_state(1, np.uint64)
    return int(words[0])
