"""One rank's share of a run, put together from its config: splits, loaders, model, loop. Knows no Ray.

The same assembly serves Ray workers, spawned test processes and a single process.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from cluster.store import open_store
from cluster.world import World
from dataloading.dataset import SPLITS, Dataset
from dataloading.loading.cache import Split, cache_root, open_split
from dataloading.loading.loader import Loader
from dataloading.loading.plan import Plan, StepPlan, evaluation_requests
from dataloading.loading.shards import Progress
from xdist_train.config import Config
from xdist_train.evidence.inference import Answers, infer, softmax
from xdist_train.evidence.metrics import Scores, point_figures
from xdist_train.models.backbones import Normalisation, build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection
from xdist_train.models.losses import LossFunction, build_class_weights
from xdist_train.models.prior import PriorShift, find_prior_shift
from xdist_train.models.weights import StoredWeights, load_weights, read_weights
from xdist_train.training.collectives import gather_rows
from xdist_train.training.learner import InputView, Learner
from xdist_train.training.loop import Job
from xdist_train.training.optim import build_schedule
from xdist_train.training.pulse import Pulse

__all__ = ["Assembly"]


class Assembly:
    """Splits, loaders, learner and job of one rank.

    Args:
        micro_batch_size: images of one forward; part of the run's identity.
        weights: where to start from, in the store of `storage.uri`; None starts from the seed.
        progress: called as shards come to this node.
        pulse: where this rank's doings are marked.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        *,
        world: World,
        device: torch.device,
        micro_batch_size: int,
        weights: StoredWeights | None = None,
        attempt: int = 1,
        progress: Progress | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self.config, self.dataset, self.world, self.device = config, dataset, world, device
        self.micro_batch_size, self.weights = micro_batch_size, weights
        self.pulse = pulse or Pulse()
        self.view = _input_view(dataset, config, weights)
        self.splits = _open_splits(config, dataset, progress)
        self.learner = self._build_learner()
        self.loader = self._build_loader("train", train=True)
        self.job = self._build_job(attempt)

    @property
    def num_classes(self) -> int:
        """Classes of the data set, and so of the model."""
        return len(self.dataset.info.classes)

    @property
    def prior(self) -> PriorShift | None:
        """How training moves the classes' shares; None if it does not."""
        counts = self.splits["train"].class_counts
        weights = build_class_weights(self.config.loss, counts)
        return find_prior_shift(counts, self.job.plan.quotas.tolist(), weights)

    def answers(self, split: str) -> Answers:
        """The judged weights' logits of every image of a split, in row order, on all ranks; collective."""
        self.learner.judged.eval()
        size = self.splits[split].num_images
        requests = evaluation_requests(size, self.micro_batch_size, self.world)
        with self._build_loader(split, train=False) as loader:
            mine = infer(self.learner.logits, self.pulse.watch(loader.load(requests)), self.num_classes)
        # A rank without a batch has no logits to take the type from.
        mine = replace(mine, logits=mine.logits.to(self.learner.precision.weights))
        on_device = mine.map(lambda values: values.to(self.device))
        return on_device.map(lambda values: gather_rows(values, self.world).cpu()).ordered()

    def val_figures(self) -> dict[str, float]:
        """Loss and figures on val, equal on all ranks; a NaN loss alone if the weights broke; collective."""
        answers = self.answers("val")
        labels, loss = answers.labels.numpy(), self.learner.loss
        if not torch.isfinite(answers.logits).all():
            return {"loss": math.nan}
        total = float(loss.per_sample(answers.logits.double(), answers.labels).sum())
        figures = point_figures(Scores.of(labels, softmax(answers.logits)))
        # A figure that is not defined (auroc of a class that val lacks) never selects.
        defined = {name: math.nan if value is None else value for name, value in figures.items()}
        return {"loss": total / loss.weight_sum(labels), **defined}

    def describe(self, selection: Selection) -> ModelDescription:
        """What `model.json` says of the present weights."""
        info, loader = self.dataset.info, self.config.loader
        return ModelDescription(
            classes=info.classes,
            preprocessing=Preprocessing(
                image_size=loader.image_size,
                fit=loader.fit,
                channels=info.channels,
                mean=self.view.mean,
                std=self.view.std,
                reduce_tolerance=loader.reduce_tolerance,
                normalise="fixed" if self.view.mean else "image",
            ),
            model=self.config.model,
            split=self.config.data.split,
            fingerprint=info.fingerprint,
            selection=selection,
            prior=self.prior,
            started_from=self.weights.key if self.weights else None,
        )

    def close(self) -> None:
        """Give threads and pipelines back."""
        self.loader.close()

    def _build_learner(self) -> Learner:
        config = self.config
        # Every rank builds the same weights: the seed is the run's, never the rank's.
        torch.manual_seed(config.train.seed)
        model = build_model(config.model, self.num_classes)
        if self.weights is not None:
            tensors = read_weights(open_store(config.storage.uri), self.weights)
            load_weights(model, tensors, self.weights.source)
        return Learner(
            model,
            self._build_loss(),
            config.optim,
            config.train,
            view=self.view,
            device=self.device,
            world=self.world,
            unfreeze_epoch=config.model.unfreeze_epoch,
        )

    def _build_loss(self) -> LossFunction:
        section = self.config.loss
        return LossFunction(section, build_class_weights(section, self.splits["train"].class_counts))

    def _build_loader(self, split: str, *, train: bool) -> Loader:
        config = self.config
        return Loader(
            self.splits[split],
            self.dataset.info,
            config.loader,
            augment=config.augment if train else None,
            seed=config.train.seed,
            device=self.device,
            threads=config.loader.threads or config.scale.cpus_per_worker,
        )

    def _build_job(self, attempt: int) -> Job:
        config, counts = self.config, self.splits["train"].class_counts
        steps = StepPlan(sum(counts), config.train.step_size, self.micro_batch_size)
        return Job(
            learner=self.learner,
            plan=Plan(counts, config.sampler.alpha, config.train.seed),
            steps=steps,
            world=self.world,
            loader=self.loader,
            evaluate=self.val_figures,
            schedule=build_schedule(config.schedule, steps.steps_per_epoch, config.train.epochs),
            train=config.train,
            early_stopping=config.early_stopping,
            checkpoint=config.checkpoint,
            attempt=attempt,
            pulse=self.pulse,
        )


def _open_splits(config: Config, dataset: Dataset, progress: Progress | None) -> dict[str, Split]:
    loader = config.loader
    return {
        name: open_split(
            dataset,
            config.data.split,
            name,
            cache_root(loader.cache_dir),
            limit_gib=loader.cache_limit_gib,
            pixel_side=loader.pixel_side,
            progress=progress,
        )
        for name in SPLITS
    }


def _input_view(dataset: Dataset, config: Config, weights: StoredWeights | None) -> InputView:
    """Each picture's own, or what the weights were trained with, where that is known, else the data set's."""
    info, loader, model_channels = dataset.info, config.loader, config.model.in_channels
    known = Normalisation((), ()) if loader.normalise == "image" else weights and weights.normalisation
    mean, std = (known.mean, known.std) if known else (info.mean, info.std)
    if len(set(mean)) == len(set(std)) == 1:
        mean, std = mean[:1], std[:1]  # one figure lets gray stay one channel up to the model
    if len(mean) > model_channels:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)  # about right for the sum of three channels
    return InputView(mean, std, loader.image_size, info.channels, model_channels)
