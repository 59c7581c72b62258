"""The recipes that ship: each says how it is used, and brings the settings that make it what it reproduces."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
import torch

from cluster.world import World
from dataloading.loading.plan import Plan, StepPlan
from tests.xdist_train.training.ranks import FakeBatches, FolderReporter, make_job
from xdist_train.config import Config, ModelConfig, TrainConfig, recipe_names, resolve_config
from xdist_train.models.backbones import build_model
from xdist_train.models.losses import build_class_weights
from xdist_train.training.loop import Job, run_loop
from xdist_train.training.optim import build_schedule
from xdist_train.training.preflight import check_network
from xdist_train.training.state import Outcome, TrainState

_NUM_CLASSES = {"oct": 4, "oct_vgg16": 4, "xray": 3, "covid_xray": 3, "covid_ct": 2, "demo": 4}
_COVID_CT_TRAIN = (234, 191)


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_loads_and_opens_with_its_command(name: str) -> None:
    """The first line is the command that uses it, with its name; the next ones say what it is, in the page's width."""
    assert isinstance(resolve_config(name, []), Config)
    lines = (resources.files("xdist_train") / "recipes" / f"{name}.yaml").read_text().splitlines()
    command = "# xdist-train demo" if name == "demo" else f"# xdist-train train {name} data.uri=FOLDER"
    assert lines[0].startswith(command)
    assert lines[1].startswith("# ")
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipes_network_takes_its_pictures(name: str) -> None:
    """Size, channels and head, by shapes; the layer of its maps is tried where it trains (end_to_end)."""
    config = resolve_config(name, ["model.weights=none", "cam.after=false"])
    check_network(config, _NUM_CLASSES.get(name, 2))


def test_oct_vgg16_has_the_tutorials_parameter_counts() -> None:
    """135,310,404 parameters for four classes, of which 1,049,860 are trained."""
    with torch.device("meta"):
        model = build_model(resolve_config("oct_vgg16", []).model, 4)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, requires_grad in sizes if requires_grad)
    assert (135_310_404, 1_049_860) == (sum(size for size, _ in sizes), trained)


def test_pneumonia_weighted_weighs_a_class_by_the_share_of_the_other() -> None:
    """On 1,349 normal and 3,883 pneumonia images 0.7422 and 0.2578."""
    weights = build_class_weights(resolve_config("pneumonia_weighted", []).loss, (1349, 3883))
    assert [0.7422, 0.2578] == [round(float(weight), 4) for weight in weights]


def _covid_ct_job(train: TrainConfig, counts: tuple[int, ...], **changes: Any) -> Job:
    """The recipe's loop over a small network and pictures that no file holds."""
    config = resolve_config("covid_ct", [])
    world = World()
    job = make_job(world, model=ModelConfig(backbone="small_cnn"), optim=config.optim, train=train, micro_batch_size=8)
    plan = Plan(counts, config.sampler.alpha, train.seed)
    steps = StepPlan(plan.num_draws, train.step_size, 8)
    return replace(
        job,
        plan=plan,
        steps=steps,
        loader=FakeBatches(plan, seen=changes.pop("seen", None)),
        schedule=build_schedule(config.schedule, steps.steps_per_epoch, train.epochs),
        early_stopping=config.early_stopping,
        **changes,
    )


def test_covid_ct_steps_once_in_64_images_and_loses_none() -> None:
    """Of 425 images, 7 steps an epoch: six of 64 in batches of 8, and the tail of 41; each image once."""
    train = replace(resolve_config("covid_ct", []).train, epochs=1)
    seen: list[tuple[int, int, int, list[int]]] = []
    job = _covid_ct_job(
        train, _COVID_CT_TRAIN, seen=seen, evaluate=lambda: {"loss": 1.0, "accuracy": 0.5, "balanced_accuracy": 0.5}
    )
    num_updates = Counter[str]()
    job.learner.optimizer.register_step_post_hook(lambda *_: num_updates.update(["step"]))
    run_loop(job, TrainState(), FolderReporter())
    images = Counter[int]()
    for _, step, _, rows in seen:
        images[step] += len(rows)
    assert [64] * 6 + [41] == [images[step] for step in range(7)]
    assert {8} == {len(rows) for _, step, _, rows in seen if step < 6}
    assert 7 == num_updates["step"]
    assert sorted(row for *_, rows in seen for row in rows) == list(range(425))


def _covid_ct_outcome(losses: list[float], accuracies: list[float]) -> tuple[Outcome, FolderReporter]:
    """A run whose figures on val are these."""
    figures = iter(zip(losses, accuracies, strict=True))

    def evaluate() -> dict[str, float]:
        loss, accuracy = next(figures)
        return {"loss": loss, "accuracy": accuracy}

    train = replace(resolve_config("covid_ct", []).train, epochs=len(losses))
    job, reporter = _covid_ct_job(train, (4, 4), evaluate=evaluate), FolderReporter()
    return run_loop(job, TrainState(), reporter), reporter


def test_covid_ct_lowers_the_rate_where_the_loss_alone_is_exhausted() -> None:
    """After the sixth bad epoch of its moving average a tenth, and patience begins anew."""
    losses, accuracies = [1.0 + 0.1 * epoch for epoch in range(14)], [0.05 * epoch for epoch in range(14)]
    outcome, reporter = _covid_ct_outcome(losses, accuracies)
    rates = [row["lr"] for row in reporter.history if row["kind"] == "epoch"]
    assert [pytest.approx(0.01)] * 7 + [pytest.approx(0.001)] * 6 + [pytest.approx(0.0001)] == rates
    assert (False, 13) == (outcome.state.stopped_early, outcome.state.selection and outcome.state.selection.epoch)


def test_covid_ct_stops_where_both_are_exhausted() -> None:
    """Loss and accuracy that never get better than in the first epoch: the seventh is the last of 60."""
    outcome, reporter = _covid_ct_outcome([1.0] * 10, [0.5] * 10)
    assert (True, 7) == (outcome.state.stopped_early, outcome.state.epoch)
    assert {0.01} == {row["lr"] for row in reporter.history}
    assert 60 == resolve_config("covid_ct", []).train.epochs
