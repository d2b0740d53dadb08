"""Every network learns: ten steps make its loss fall, on every scheme of labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medseg.core.network_options import NETWORK_KINDS
from medseg.core.plan import Plan, edited
from medseg.training.cache import CachedCase
from medseg.training.loader import Batches
from medseg.training.loop import TrainJob, train_network
from medseg.training.losses import SegmentationLoss
from medseg.training.schedule import Schedule
from medseg.training.step import new_state
from medseg.workflows.train import train
from tests.network_plans import small_network, small_plan_of
from tests.phantoms import write_msd_dataset
from tests.training.test_label_schemes import SCHEMES, dataset_of
from tests.training.test_label_schemes import cached as scheme_cases
from tests.training.test_loader import cached

pytest.importorskip("einops")
CPU = torch.device("cpu")
STEPS = 10
SLOW = {("swin_unetr", 3), ("unetr", 3)}
everyone = pytest.mark.parametrize("name", list(NETWORK_KINDS))


def loss_of(network: torch.nn.Module, cases: list[CachedCase], plan: Plan) -> float:
    """On batches that no step has seen, as the network is while it learns."""
    batches, loss = Batches(cases, plan, seed=5, device=CPU), SegmentationLoss(plan, CPU)
    with torch.no_grad():
        found = []
        for step in range(3):
            images, targets = batches.batch(step)
            outputs = network.train()(images)
            found.append(loss(outputs if isinstance(outputs, list) else [outputs], targets))
    return float(torch.stack(found).mean())


def fall(plan: Plan, cases: list[CachedCase], folder: Path) -> float:
    """By how much ten steps of the loop make the loss fall."""
    folder.mkdir(parents=True, exist_ok=True)
    job = TrainJob(
        plan=plan, cases=cases, inner=[], schedule=Schedule(STEPS), seed=3, device=CPU,
        checkpoint=folder / "checkpoint.safetensors",
    )  # fmt: skip
    before = loss_of(new_state(plan, seed=3, device=CPU).network, cases, plan)
    state = train_network(job)
    assert state.step == STEPS
    return before - loss_of(state.network, cases, plan)


def tuned(plan: Plan) -> Plan:
    """At a rate that shows something within ten steps."""
    rate = 4 * plan.network.kind.learning_rate
    return edited(plan, {"training.learning_rate": rate, "training.warmup_share": 0.0})


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        pytest.param(name, dims, marks=[pytest.mark.acceptance] if (name, dims) in SLOW else [])
        for name in NETWORK_KINDS
        for dims in (2, 3)
    ],
)
def test_ten_steps_make_the_loss_fall(name: str, dims: int, tmp_path: Path) -> None:
    network, patch = small_network(name, dims, in_channels=1)
    changes = {"network": network.model_dump(), "patch_size": patch, "channels": CHANNEL}
    plan = tuned(edited(small_plan_of(name, dims), changes))
    shape = (30, 24, 20) if dims == 3 else (36, 30, 1)
    assert fall(plan, [cached(n, shape) for n in range(2)], tmp_path) > 0.05


CHANNEL = [{"name": "first", "normalisation": "zscore"}]


@pytest.mark.acceptance
@pytest.mark.parametrize("scheme", SCHEMES)
@everyone
def test_every_network_on_every_label_scheme(name: str, scheme: str, tmp_path: Path) -> None:
    plan, cases = scheme_cases(dataset_of(tmp_path / "data", scheme))
    network, patch = small_network(name, 3, in_channels=1, classes=plan.network.classes)
    plan = edited(plan, {"network": network.model_dump(), "patch_size": patch})
    assert fall(tuned(plan), cases, tmp_path) > 0.05


@pytest.mark.acceptance
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", [*NETWORK_KINDS, "mednext_s"])
def test_the_planner_the_loop_and_the_package_of_every_network(
    name: str, flat: bool, tmp_path: Path
) -> None:
    shape = (30, 24, 1) if flat else (18, 14, 9)
    data = write_msd_dataset(tmp_path / "data", cases=4, shape=shape, splits=False)
    settings = {"network": name, "base_features": 4, "epochs": 1, "device": "cpu"}
    steps = ["plan.training.steps_per_epoch=3", "plan.training.batch_size=2"]
    result = train(data, tmp_path / "run", set=steps, **settings)
    assert result["steps"] == 3
    assert (tmp_path / "run" / "model" / "checksums").is_file()
    assert result["metrics"] is not None


def test_a_network_by_name_from_data_to_masks(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=3, shape=(18, 14, 9), splits=False)
    settings = {"network": "deeplab", "base_features": 4, "epochs": 1, "device": "cpu"}
    steps = ["plan.training.steps_per_epoch=2", "plan.training.batch_size=1"]
    result = train(data, tmp_path / "run", set=steps, **settings)
    assert result["metrics"] is not None
