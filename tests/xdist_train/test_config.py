"""What a configuration refuses, and identity, which is what decides a result."""

from __future__ import annotations

import pytest

from cluster.errors import InputError
from xdist_train.config import fill_identity, identity, identity_digest, resolve_config
from xdist_train.training.preflight import check_identity


def _digest(*overrides: str, micro: int = 8) -> str:
    return identity_digest(identity(resolve_config("demo", overrides), "print", micro))


@pytest.mark.parametrize(
    "override",
    ["scale.num_workers=4", "storage.uri=x", "run.name=x", "checkpoint.every_steps=5", "loader.threads=3",
     "failure.max_failures=0", "train.log_every_steps=3", "early_stopping.patience=3"],
)  # fmt: skip
def test_scale_and_storage_are_not_identity(override: str) -> None:
    """They may change when a run goes on."""
    assert _digest() == _digest(override)


@pytest.mark.parametrize(
    "override",
    ["model.backbone=resnet18", "optim.lr=0.5", "sampler.alpha=1", "augment.flip=0", "train.seed=1",
     "train.batch_size=32", "loader.image_size=96", "data.split=given", "schedule.name=step", "train.epochs=3",
     "model.outputs=sigmoid", "model.in_channels=1", "loader.normalise=image", "loss.class_weights=complement",
     "train.ema_decay=0.99", "train.mixup=0.4", "loader.cache=pixels", "model.unfreeze_epoch=2",
     "optim.layer_decay=0.8", "train.gradient_traffic=bf16"],
)  # fmt: skip
def test_what_decides_the_result_is_identity(override: str) -> None:
    """Epochs too, where the schedule depends on them (the demo's cosine does)."""
    assert _digest() != _digest(override)


def test_epochs_may_grow_under_a_schedule_that_does_not_know_them() -> None:
    """With a step schedule more epochs are the same run."""
    assert _digest("schedule.name=step") == _digest("schedule.name=step", "train.epochs=99")


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden"])
def test_run_names_are_plain_folder_names(name: str) -> None:
    """A name cannot leave the storage folder."""
    with pytest.raises(InputError, match=r"run\.name"):
        resolve_config("demo", [f"run.name={name}"])


_DRIVEN = ("schedule.name=exhausted_loss", "early_stopping.watch=[loss,accuracy]", "early_stopping.patience=6")


def test_patience_that_drives_the_rate_is_identity() -> None:
    """It decides the result then, and may not change when a run goes on."""
    assert _digest(*_DRIVEN) != _digest(*_DRIVEN, "early_stopping.smoothing=0.8")


@pytest.mark.parametrize(
    "overrides",
    [
        ["early_stopping.watch=[loss,f1]"],
        ["early_stopping.watch=[loss,loss]"],
        ["early_stopping.smoothing=1"],
        ["schedule.name=exhausted_loss"],
        [*_DRIVEN, "early_stopping.watch=[loss]"],
        [*_DRIVEN, "early_stopping.patience=0"],
    ],
)
def test_what_cannot_be_watched_is_refused(overrides: list[str]) -> None:
    """Unknown or doubled figures, a past that never fades, a rate that would never drop."""
    with pytest.raises(InputError, match=r"early_stopping\.(watch|smoothing|patience)"):
        resolve_config("demo", overrides)


def test_an_identity_of_an_earlier_version_is_that_of_the_defaults() -> None:
    """A run recorded before a setting was there goes on with its default, and is refused with another value."""
    recorded = identity(resolve_config("demo", []), "print", 8)
    del recorded["model.outputs"]
    check_identity("run", {"identity": recorded}, identity(resolve_config("demo", []), "print", 8))
    now = identity(resolve_config("demo", ["model.outputs=sigmoid"]), "print", 8)
    with pytest.raises(InputError, match=r"model\.outputs was 'softmax', now 'sigmoid'"):
        check_identity("run", {"identity": recorded}, now)


@pytest.mark.parametrize("override", [[], ["schedule.name=step"]])
def test_filling_an_identity_changes_nothing_that_is_there(override: list[str]) -> None:
    """What this version records is whole; epochs that were left out stay out."""
    recorded = identity(resolve_config("demo", override), "print", 8)
    assert recorded == fill_identity(recorded)


def test_compiling_and_unfreezing_do_not_go_together() -> None:
    """Said in one sentence, before anything starts."""
    with pytest.raises(InputError, match=r"model\.unfreeze_epoch .*train\.compile=false"):
        resolve_config("demo", ["model.freeze=backbone", "model.unfreeze_epoch=2", "train.compile=true"])
