"""The configuration of a training run: its sections, the root that joins them, and its identity.

Imports nothing heavy. Only `launch` and `worker` see the root; every other function gets its own section.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from cluster.config import Layer, digest, load_config, parse_overrides, read_layer, to_dict
from cluster.errors import InputError
from dataloading.config import AugmentConfig, DataConfig, LoaderConfig, SamplerConfig

Metric = Literal["loss", "accuracy", "balanced_accuracy", "macro_f1", "mcc", "auroc_macro"]
"""A figure on val at an epoch's end."""

__all__ = [
    "CamConfig",
    "CheckpointConfig",
    "Config",
    "EarlyStoppingConfig",
    "EvaluateConfig",
    "FailureConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "ScaleConfig",
    "ScheduleConfig",
    "StorageConfig",
    "TrainConfig",
    "at_least",
    "fill_identity",
    "identity",
    "identity_digest",
    "narrow",
    "recipe_names",
    "resolve_config",
]


def at_least(section: str, config: object, **limits: float) -> None:
    """Raises ValueError, as a section's check does, for the first named value that is below its limit."""
    for name, limit in limits.items():
        value = getattr(config, name)
        if not value >= limit:
            raise ValueError(f"{section}.{name} must be {limit} or more, not {value}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    backbone: str = "resnet18"
    """A torchvision or timm classification model, or `small_cnn`."""
    weights: str = "none"
    """`none`, `imagenet`, or a run, a model folder or a safetensors file whose weights to start from."""
    freeze: str = "none"
    """`backbone` trains the head alone, `stages:N` all but the first N stages; frozen parts stay in eval mode."""
    unfreeze_epoch: int = 0
    """Epoch, counted from 1, from which on everything trains; 0 is never."""
    dropout: float = 0.0
    """Dropout before the last layer, and after the hidden one."""
    hidden: int = 0
    """Units of a hidden layer in the head; 0 is none."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of `small_cnn`."""
    in_channels: int = 3
    """Channels of the first convolution: 3, or 1 for a gray data set, with weights that are the sum over three."""
    outputs: Literal["softmax", "sigmoid"] = "softmax"
    """`softmax` has a logit a class; `sigmoid` one logit for two classes, whose sigmoid is the second's probability."""

    def __post_init__(self) -> None:
        if not self.backbone:
            raise ValueError("model.backbone must name a network")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must lie in 0..1 (below 1), not {self.dropout}")
        if self.in_channels not in (1, 3):
            raise ValueError(f"model.in_channels must be 3 or 1, not {self.in_channels}")
        if not re.fullmatch(r"none|backbone|stages:[1-9]\d{0,3}", self.freeze):
            raise ValueError(
                f"model.freeze must be none, backbone or stages:N with N of 1 or more, not {self.freeze!r}"
            )
        at_least("model", self, hidden=0, unfreeze_epoch=0)

    @property
    def frozen_stages(self) -> int:
        """How many `freeze` names by number; 0 for its words."""
        return int(self.freeze.removeprefix("stages:")) if self.freeze.startswith("stages:") else 0


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy and what bends it."""

    class_weights: Literal["none", "inverse", "complement", "list"] = "none"
    """`inverse` weighs each image by images / (classes x images of its class); `complement` by the other classes' share
    of the images; `list` by class_weight_list."""
    class_weight_list: tuple[float, ...] = ()
    """`list`: the weight of each class, in the data set's order of classes."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    focal_gamma: float = 0.0
    """Exponent of the focal loss (Lin et al. 2017); 0 is cross-entropy."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing must lie in 0..1 (below 1), not {self.label_smoothing}")
        if bool(self.class_weight_list) != (self.class_weights == "list"):
            raise ValueError("loss.class_weight_list goes with loss.class_weights=list, and only with it")
        if any(not weight > 0 for weight in self.class_weight_list):
            raise ValueError(f"loss.class_weight_list must be above 0, not {list(self.class_weight_list)}")
        at_least("loss", self, focal_gamma=0)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    """Update rule."""
    lr: float = 1e-3
    """Learning rate before the schedule's factor."""
    weight_decay: float = 0.0
    """Weight decay (decoupled in adamw)."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each stage of the network to the one before it; the head has the full rate."""
    decay_norm_and_bias: bool = False
    """Whether weight decay also acts on normalisation layers and biases."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov momentum in sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of adam and adamw."""
    eps: float = 1e-8
    """Added to the denominator in adam and adamw."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr must be above 0, not {self.lr}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay must lie in 0..1 (above 0), not {self.layer_decay}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum must lie in 0..1 (below 1), not {self.momentum}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas must lie in 0..1 (below 1), not {list(self.betas)}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov needs optim.momentum above 0")
        if not self.eps > 0:
            raise ValueError(f"optim.eps must be above 0, not {self.eps}")
        at_least("optim", self, weight_decay=0)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves."""

    name: Literal["constant", "step", "cosine", "plateau", "exhausted_loss"] = "cosine"
    """Rule; `exhausted_loss` drops where early stopping finds the loss alone exhausted, and begins that anew."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0, before any rule."""
    step_epochs: int = 4
    """`step`: epochs between two drops."""
    gamma: float = 0.1
    """`step`, `plateau` and `exhausted_loss`: factor of a drop."""
    patience: int = 3
    """`plateau`: epochs without improvement of the loss on val before a drop."""
    min_factor: float = 0.0
    """Least factor that `cosine` ends at and the others drop to."""

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"schedule.gamma must lie in 0..1 (above 0), not {self.gamma}")
        if not 0 <= self.min_factor <= 1:
            raise ValueError(f"schedule.min_factor must lie in 0..1, not {self.min_factor}")
        at_least("schedule", self, warmup_epochs=0, step_epochs=1, patience=0)


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """When to stop before the last epoch."""

    patience: int = 0
    """Epochs without improvement of `train.metric` before the run stops; 0 never stops early."""
    min_delta: float = 0.0
    """Least change that counts as improvement."""
    watch: tuple[str, ...] = ()
    """Figures on val that must all have stopped improving, e.g. [loss,accuracy]; empty is `train.metric` alone."""
    smoothing: float = 0.0
    """Share of the past in each figure's moving average, by which improvement is judged; 0 is each epoch by itself."""

    def __post_init__(self) -> None:
        at_least("early_stopping", self, patience=0, min_delta=0)
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"early_stopping.smoothing must lie in 0..1 (below 1), not {self.smoothing}")
        unknown = [name for name in self.watch if name not in get_args(Metric)]
        if unknown:
            raise ValueError(f"early_stopping.watch: {unknown[0]!r} is none of {', '.join(get_args(Metric))}")
        if len(set(self.watch)) != len(self.watch):
            raise ValueError(f"early_stopping.watch names a figure twice: {list(self.watch)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    epochs: int = 10
    """Epochs; each draws as many images as the train split has."""
    batch_size: int = 64
    """Images of one pass over all workers."""
    accumulation_steps: int = 1
    """Passes of one optimiser step; a step is batch_size x accumulation_steps images."""
    micro_batch_size: int = 0
    """Images of one forward on one worker; 0 is batch_size / workers at the first launch, then kept."""
    precision: Literal["auto", "float32", "float64", "bf16", "fp16"] = "auto"
    """`auto` is bf16 on a GPU that has it, fp16 on an older one, float32 on a CPU."""
    gradient_traffic: Literal["full", "bf16"] = "full"
    """How gradients travel between workers: as they are, or rounded to half of their bytes, for slow links."""
    channels_last: bool = True
    """Memory format of images and convolutions."""
    compile: bool = False
    """Run the model through torch.compile."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""
    mixup: float = 0.0
    """Alpha of mixup: each picture is mixed with another of its micro batch, as are their losses, by a share drawn from
    Beta(alpha, alpha). 0 mixes nothing."""
    ema_decay: float = 0.0
    """Share of the old that a step leaves in the average of the weights, which is then evaluated and published in their
    place; the first steps leave less, (1 + t) / (10 + t). 0 keeps no average."""
    metric: Metric = "balanced_accuracy"
    """Figure on val that selects the best epoch."""
    seed: int = 0
    """Seed of order, augmentation, initial weights and dropout."""
    log_every_steps: int = 10
    """Steps between two rows of kind `step` in metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least("train", self, epochs=1, batch_size=1, accumulation_steps=1, micro_batch_size=0)
        at_least("train", self, clip_norm=0, mixup=0, seed=0, log_every_steps=1)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay must lie in 0..1 (below 1), not {self.ema_decay}")
        if self.micro_batch_size > self.batch_size * self.accumulation_steps:
            raise ValueError(
                f"train.micro_batch_size {self.micro_batch_size} is larger than a step "
                f"({self.batch_size} x {self.accumulation_steps} images)"
            )

    @property
    def step_size(self) -> int:
        """Images of one optimiser step."""
        return self.batch_size * self.accumulation_steps


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How much of the cluster a run takes."""

    num_workers: Any = 1
    """Workers, one process each; `[least, most]` takes what the cluster has, and changes as nodes come and go."""
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    """`auto` takes a GPU a worker where the cluster has enough of them."""
    cpus_per_worker: int = 1
    """CPUs reserved for a worker; also its intra-op threads and its decoding threads."""
    wait_s: float = 0.0
    """Seconds to wait for room for workers, at the start and after a loss; 0 is 120, or 1,800 with an autoscaler."""

    def __post_init__(self) -> None:
        ends = self.num_workers if isinstance(self.num_workers, list | tuple) else [self.num_workers]
        if len(ends) not in (1, 2) or not all(type(end) is int and end >= 1 for end in ends) or ends[0] > ends[-1]:
            raise ValueError(f"scale.num_workers must be a number above 0, or [least, most], not {self.num_workers!r}")
        at_least("scale", self, cpus_per_worker=1, wait_s=0)

    @property
    def least(self) -> int:
        """Workers without which a run waits."""
        return int(self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0])

    @property
    def most(self) -> int:
        """Workers that a run has where there is room."""
        return int(self.num_workers if isinstance(self.num_workers, int) else self.num_workers[-1])


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved; every epoch's end always is."""

    every_steps: int = 0
    """Also every so many steps within an epoch; 0 is at the end of epochs only."""
    keep: int = 3
    """Newest checkpoints kept."""

    def __post_init__(self) -> None:
        at_least("checkpoint", self, every_steps=0, keep=1)


@dataclass(frozen=True, kw_only=True)
class FailureConfig:
    """What is tried again."""

    max_failures: int = 3
    """Restarts after a lost worker or node, a hang, or a storage that stays away; what would fail again is never tried
    again."""
    hang_s: float = 300.0
    """Seconds of standstill after which the rank to blame is ended and the run goes on from its checkpoint; 300 more
    until a process's first step is done, and 120 more while it saves."""

    def __post_init__(self) -> None:
        at_least("failure", self, max_failures=0, hang_s=5)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The figures after training."""

    test: bool = True
    """Evaluate test once with the selected weights when training ends."""
    bootstrap: int = 1000
    """Resamples of patients for the 95 % intervals."""

    def __post_init__(self) -> None:
        at_least("evaluate", self, bootstrap=100)


@dataclass(frozen=True, kw_only=True)
class CamConfig:
    """Class activation maps of a trained model: which, and how the work is shared."""

    after: bool = False
    """Make them when training has finished, on what it has freed."""
    method: Literal["auto", "classic", "gradcam", "gradcam++", "layercam", "scorecam"] = "auto"
    """`auto` is classic where it is exact (global average pooling and one linear layer), else gradcam."""
    layer: str = ""
    """Layer to look at, as a dotted name; empty is the last one with a map of the picture."""
    split: Literal["train", "val", "test"] = "test"
    """Images that are explained."""
    overlays: Literal["gallery", "all", "none"] = "gallery"
    """Pictures drawn: those of the gallery, of every image, or none."""
    gallery: int = 3
    """Pictures of each class, kind of answer and order (most confident, random) in the gallery."""
    picture_px: int = 512
    """Longest side of a drawn picture, in pixels."""
    faithfulness: int = 500
    """Images, spread over the split, on which pixels are removed to see whether the map was right; 0 is none."""
    batch_size: int = 0
    """Images of one forward; 0 is 16 on a CPU, whose caches they fit, and 128 on a GPU."""
    part_size: int = 128
    """Images of one part: what a worker does at a time, and does again if it is lost."""
    workers: int = 0
    """Worker processes, at most; 0 is as many as the cluster has room for."""
    cpus_per_worker: int = 1
    """CPUs reserved for a worker; also its threads."""
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    """`auto` takes a GPU a worker where the cluster has any."""

    def __post_init__(self) -> None:
        at_least("cam", self, gallery=0, picture_px=64, faithfulness=0, batch_size=0, part_size=1)
        at_least("cam", self, workers=0, cpus_per_worker=1)


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """Where runs are kept."""

    uri: str = "runs"
    """Folder of run folders: a path, or s3://BUCKET/PREFIX that all nodes reach."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run's name and what to do if it exists."""

    name: str = ""
    """Folder name under storage.uri; empty makes one of recipe, date and time."""
    resume: Literal["never", "auto", "must"] = "never"
    """`never` refuses a taken name, `auto` goes on if it exists, `must` refuses a new one."""

    def __post_init__(self) -> None:
        if self.name != Path(self.name).name or self.name.startswith("."):
            raise ValueError(f"run.name must be a plain folder name, not {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a training run is told."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    failure: FailureConfig = field(default_factory=FailureConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    cam: CamConfig = field(default_factory=CamConfig)

    def __post_init__(self) -> None:
        stopping = self.early_stopping
        if self.schedule.name == "exhausted_loss" and not (
            stopping.patience and "loss" in stopping.watch and len(stopping.watch) > 1
        ):
            raise ValueError(
                "schedule.name exhausted_loss needs early_stopping.patience above 0, and loss and another figure in "
                f"early_stopping.watch, not {list(stopping.watch)}"
            )
        if self.model.unfreeze_epoch and self.train.compile:
            raise ValueError(
                "model.unfreeze_epoch changes what is trained in the midst of a run, which train.compile does not "
                "take: use train.compile=false"
            )


def narrow(config: Config) -> Config:
    """What a run is told, of a configuration that says more (a demo's, a search's)."""
    return Config(**{section.name: getattr(config, section.name) for section in fields(Config)})


_IDENTITY_SECTIONS = ("model", "loss", "optim", "schedule", "sampler", "augment", "train")
# These change what is learned although they live in the loader's section.
_IDENTITY_LOADER_KEYS = ("image_size", "fit", "reduce_tolerance", "normalise", "cache")
# Speed and reporting, not result.
_NOT_IDENTITY_TRAIN_KEYS = ("log_every_steps", "compile", "channels_last")


def identity(config: Config, fingerprint: str, micro_batch_size: int) -> dict[str, Any]:
    """What makes two launches the same run, as dotted keys and plain values.

    Scale, storage, checkpoints, patience (unless it drives the learning rate) and the run's name are not part of it.
    `train.epochs` is left out where the schedule does not depend on it, so that such a run may be lengthened.
    """
    values = to_dict(config)
    flat = {f"{section}.{key}": value for section in _IDENTITY_SECTIONS for key, value in values[section].items()}
    flat |= {f"loader.{key}": values["loader"][key] for key in _IDENTITY_LOADER_KEYS}
    flat |= {"data.fingerprint": fingerprint, "data.split": config.data.split}
    flat["train.micro_batch_size"] = micro_batch_size
    for key in _NOT_IDENTITY_TRAIN_KEYS:
        del flat[f"train.{key}"]
    if config.schedule.name != "cosine":
        del flat["train.epochs"]
    if config.schedule.name == "exhausted_loss":
        flat |= {f"early_stopping.{key}": value for key, value in values["early_stopping"].items()}
    return flat


def fill_identity(recorded: dict[str, Any]) -> dict[str, Any]:
    """An identity as this version would have recorded it: a setting that was not yet there is at its default.

    `train.epochs` is never filled in: where it is missing, it was left out.
    """
    defaults = identity(Config(schedule=ScheduleConfig(name="constant")), "", 0)
    return {**defaults, **recorded}


def identity_digest(values: dict[str, Any]) -> str:
    """Short name of an identity."""
    return digest(values)[:16]


def recipe_names() -> list[str]:
    """Recipes that ship with the program."""
    folder = resources.files("xdist_train") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def resolve_config(recipe: str, overrides: Sequence[str]) -> Config:
    """defaults < recipe (a shipped name or a YAML file) < `key=value`.

    Raises:
        InputError: unknown recipe, or what `load_config` refuses.
    """
    return load_config(Config, [read_recipe(recipe), *parse_overrides(overrides)])


def read_recipe(recipe: str) -> Layer:
    """The values of a recipe by shipped name, or of a YAML file by path."""
    if recipe in recipe_names():
        path = Path(str(resources.files("xdist_train") / "recipes" / f"{recipe}.yaml"))
        return read_layer(path, f"recipe {recipe}")
    path = Path(recipe)
    if not path.suffix and not path.exists():
        raise InputError(
            f"unknown recipe {recipe!r}. Recipes are: {', '.join(recipe_names())}; or give the path of a YAML file."
        )
    return read_layer(path)
