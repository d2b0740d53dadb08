"""The estimate of a step's memory: against a hand count, and against a step that ran."""

from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest

from medseg.core.errors import SettingsError
from medseg.core.plan import Plan
from medseg.networks.build import build_network
from medseg.planning.choices import coarsening_for, takes_single_slices
from medseg.planning.memory import estimated_step_bytes, largest_batch, largest_patch
from medseg.planning.planner import Means, make_plan
from tests.models import small_plan
from tests.planning_facts import LABELS, fingerprint

MEANS = Means(56 * 56 * 40, 2, (8, 16, 32), 320)


def test_doubling_the_batch_doubles_all_but_weights() -> None:
    one, two, four = (
        estimated_step_bytes(small_plan(**{"training.batch_size": n, "patch_size": (32, 32, 32)}))
        for n in (1, 2, 4)
    )
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    full = small_plan(patch_size=(32, 32, 32))
    assert estimated_step_bytes(full, half=True) < estimated_step_bytes(full)


def test_weights_count_five_times() -> None:
    thin, wide = (
        small_plan(**{"network.features": (4, width), "patch_size": (4, 4, 4)})
        for width in (8, 800)
    )
    weights = [
        sum(w.numel() for w in build_network(plan.network, seed=0).parameters())
        for plan in (thin, wide)
    ]
    grown = estimated_step_bytes(wide) - estimated_step_bytes(thin)
    assert grown == pytest.approx(1.15 * 20 * (weights[1] - weights[0]), rel=0.02)


_STEP = """
import sys, torch
from pathlib import Path
from medseg.networks.build import build_network
from tests.models import small_plan
torch.set_num_threads(1)
side = int(sys.argv[1])
features = (16, 32, 64)
plan = small_plan(**{
    "network.features": features, "network.strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "network.kernels": ((3, 3, 3),) * 3, "patch_size": (side,) * 3,
})
def status(name):
    # Not ru_maxrss: a process begins with that of the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
network = build_network(plan.network, seed=0).train()
optimiser = torch.optim.AdamW(network.parameters())
torch.nn.functional.conv3d(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 3, 3, 3))
# Not the peak: imports reach higher than what they leave.
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
x = torch.randn(2, 1, side, side, side)
y = torch.randint(0, 3, (2, side, side, side))
for _ in range(2):
    outputs = network(x)
    finest = outputs[0] if isinstance(outputs, list) else outputs
    log = torch.log_softmax(finest.float(), 1)
    loss = torch.nn.functional.nll_loss(log, y) - log.exp().mean()
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_estimate_holds_for_a_step_that_runs() -> None:
    side = 48
    done = subprocess.run(
        [sys.executable, "-c", _STEP, str(side)], check=True, capture_output=True, text=True
    )
    measured = int(done.stdout.split()[-1])
    plan = small_plan(
        **{
            "network.features": (16, 32, 64),
            "network.strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
            "network.kernels": ((3, 3, 3),) * 3,
            "patch_size": (side,) * 3,
        }
    )
    # Libraries keep more or less of what was freed, from run to run.
    assert 0.6 * measured < estimated_step_bytes(plan) < 1.8 * measured


def test_more_memory_gives_a_larger_patch_then_a_larger_batch() -> None:
    large = fingerprint(median_shape=(150, 140, 130), cases=40)
    sides, batches = [], []
    for gigabytes in (0.5, 2, 4, 64):
        means = Means(1, 2, (16,), 320, target_bytes=int(gigabytes * 1e9))
        plan = make_plan(large, LABELS, means, width=16)
        assert estimated_step_bytes(plan) <= gigabytes * 1e9
        sides.append(prod(plan.patch_size))
        batches.append(plan.training.batch_size)
    assert sides == sorted(sides)
    assert sides[0] < sides[2]
    assert batches[0] == 2
    assert batches[-1] == 2  # 5 % of 40 cases are two whole scans
    small = fingerprint(median_shape=(36, 50, 35), cases=200)
    plan = make_plan(small, LABELS, Means(1, 2, (8,), 320, target_bytes=int(2e9)), width=8)
    assert plan.training.batch_size > 2
    assert "GB" in plan.reasons["patch_size"]


def test_too_little_memory_is_told_with_what_is_needed() -> None:
    means = Means(1, 2, (32,), 320, target_bytes=50_000_000)
    with pytest.raises(SettingsError, match=r"--target-memory: expected at least 0\.\d GB"):
        make_plan(fingerprint(), LABELS, means, width=32)


def test_the_search_finds_the_largest_that_fits() -> None:
    def plan_of(voxels: int) -> Plan:
        return small_plan(**{"training.steps_per_epoch": voxels})

    def cost(plan: Plan) -> int:
        return 7 * plan.training.steps_per_epoch

    found = largest_patch(plan_of, target_bytes=70_000, step_bytes=cost, most_voxels=10**6)
    assert found is not None
    assert 9_700 < found.training.steps_per_epoch <= 10_000
    all_of_it = largest_patch(plan_of, target_bytes=10**8, step_bytes=cost, most_voxels=10**6)
    assert all_of_it == plan_of(10**6)
    assert largest_patch(plan_of, target_bytes=9, step_bytes=cost, most_voxels=10**6) is None
    grown = largest_batch(
        small_plan(), target_bytes=50, step_bytes=lambda plan: 9 * plan.training.batch_size, most=8
    )
    assert grown.training.batch_size == 5


def test_single_slices_are_asked_for_or_follow_from_few_thick_ones() -> None:
    few = fingerprint(median_shape=(300, 280, 4), median_spacing_mm=(1.0, 1.0, 8.0))
    assert takes_single_slices(few, "auto")
    assert not takes_single_slices(fingerprint(), "auto")
    plan = make_plan(few, LABELS, MEANS, width=4)
    assert plan.patch_size[2] == 1
    assert plan.spacing_mm == (1.0, 1.0, None)
    assert plan.network.spatial_dims == 2
    assert plan.reasons["configuration"].startswith("2d: ")


def test_single_slices_lie_across_the_coarse_axis() -> None:
    tilted = fingerprint(median_shape=(30, 200, 240), median_spacing_mm=(4.0, 0.9, 0.8),
                         low_spacing_mm=(3.0, 0.8, 0.7))  # fmt: skip
    means = Means(192 * 192, 8, (4,), 320, configuration="2d")
    plan = make_plan(tilted, LABELS, means, width=4)
    assert plan.axis_order == (1, 2, 0)
    assert plan.spacing_mm == (0.9, 0.8, None)
    assert plan.patch_size[2] == 1


def test_coarse_3d_shows_a_quarter_of_the_scan() -> None:
    large = fingerprint(median_shape=(300, 280, 260))
    fine = make_plan(large, LABELS, MEANS, width=4)
    low = make_plan(
        large, LABELS, Means(56 * 56 * 40, 2, (4,), 320, configuration="3d-low"), width=4
    )
    shape = [
        side / step for side, step in zip((300, 280, 260), low.spacing_mm, strict=True) if step
    ]
    assert prod(low.patch_size) / prod(shape) > 0.24
    assert prod(fine.patch_size) / prod((300, 280, 260)) < 0.02
    assert "a finer patch shows" in fine.reasons["not_3d-low"]
    assert coarsening_for((10, 10, 10), (10, 10, 10)) == 1.0


@pytest.mark.parametrize("asked", ["4d", "3d"])
def test_configurations_that_cannot_be(asked: str) -> None:
    flat = fingerprint(two_dimensional=True, median_shape=(300, 200, 1))
    with pytest.raises(SettingsError, match="--configuration"):
        make_plan(flat, LABELS, Means(192**2, 8, (4,), 320, configuration=asked), width=4)


def test_mr_gets_what_mr_scanners_add() -> None:
    facts = fingerprint().channels[0].model_copy(update={"modality": "MR"})
    mr = make_plan(fingerprint(channels=(facts,)), LABELS, MEANS, width=4)
    ct = make_plan(fingerprint(), LABELS, MEANS, width=4)
    assert mr.training.augmentation.bias_field.probability > 0
    assert ct.training.augmentation.bias_field.probability == 0
    assert "bias" in mr.reasons["augmentation"]
