"""Plans against what nnU-Net decides, hand-worked cases, and rules that always hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import DatasetError, SettingsError
from medseg.core.labels import LabelSet
from medseg.core.plan import ChannelFacts, Plan
from medseg.networks.build import build_network
from medseg.networks.cost import network_cost
from medseg.planning.planner import Means, make_plan, means_for, patch_and_strides
from tests.planning_facts import LABELS, fingerprint

MEANS = means_for("cpu", two_dimensional=False, training_s=None)


def channel(**changes: Any) -> tuple[ChannelFacts, ...]:
    return (fingerprint().channels[0].model_copy(update=changes),)


def test_hippocampus_as_nnunet_plans_it() -> None:
    # Its plan for MSD Task04 (version 2.8.1): median shape 36 x 50 x 35 at 1 mm, a patch of
    # 40 x 56 x 40, and 3 poolings by 2 along each axis.
    patch, strides, kernels = patch_and_strides((36, 50, 35), (1.0, 1.0, 1.0), MEANS.patch_voxels)
    assert patch == (40, 56, 40)
    assert strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert kernels == ((3, 3, 3),) * 4


def test_coarse_slices_wait() -> None:
    # 5 mm slices, 1 mm pixels: the first two poolings halve the pixels alone. Kernels are
    # flat until slices are less than twice as thick as pixels are wide: at 4 mm.
    patch, strides, kernels = patch_and_strides((320, 320, 40), (1.0, 1.0, 5.0), 128**2 * 24)
    assert strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert kernels[:4] == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3))
    # A box of equal millimetres: 125 x 125 x 25, rounded up to multiples of 32 and 4.
    assert patch == (128, 128, 28)


def test_two_dimensions() -> None:
    patch, strides, kernels = patch_and_strides((500, 400, 1), (0.5, 0.5, 1.0), 192 * 192)
    assert patch == (192, 192, 1)
    assert len(strides) == 6
    assert {step[2] for step in strides} == {1}
    assert {side[2] for side in kernels} == {1}


def test_a_scan_that_is_smaller_than_the_patch_gives_its_room_to_the_other_axes() -> None:
    # 8 slices at 2 mm: what they leave of 64^3 voxels goes to a square of 181.
    patch, _, _ = patch_and_strides((400, 300, 8), (2.0, 2.0, 2.0), 64**3)
    assert patch == (192, 192, 8)


TINY = [
    (8, 8, 5), (5, 4, 3), (2, 3, 5), (3, 3, 3), (2, 1, 2), (7, 4, 30), (30, 20, 2), (64, 3, 3),
    (1, 40, 3), (1, 24, 18), (24, 1, 18), (7, 5, 1), (1, 30, 1), (5, 5, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 2.0, 3.0), (4.0, 0.5, 0.7)])
def test_tiny_scans_have_two_stages(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> None:
    patch, strides, kernels = patch_and_strides(shape, spacing_mm, 64**3)
    assert len(strides) == len(kernels) >= 2
    divisor = np.prod(strides, axis=0)
    assert not np.any(np.array(patch) % divisor)
    assert np.prod(patch) > np.prod(divisor)
    for axis, size in enumerate(shape):
        assert size <= patch[axis] < size + max(2, divisor[axis]) + 1
        if size == 1:  # never pooled, never looked around
            assert patch[axis] == divisor[axis] == 1
            assert {kernel[axis] for kernel in kernels} == {1}


def test_tiny_scans_by_hand() -> None:
    # Equal sides: each is made even and halved once. Beside axes half as fine those wait.
    assert patch_and_strides((5, 3, 7), (1.0, 1.0, 1.0), 4096)[:2] == (
        (6, 4, 8), ((1, 1, 1), (2, 2, 2)),
    )  # fmt: skip
    assert patch_and_strides((5, 3, 7), (1.0, 1.0, 2.0), 4096)[:2] == (
        (6, 4, 7), ((1, 1, 1), (2, 2, 1)),
    )  # fmt: skip
    # Two voxels would become one, which no norm can take.
    assert patch_and_strides((2, 2, 1), (1.0, 1.0, 1.0), 4096)[0] == (4, 2, 1)


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("target", [None, 400_000_000])
def test_a_network_learns_from_tiny_scans(shape: tuple[int, int, int], target: int | None) -> None:
    facts = fingerprint(
        median_shape=shape, two_dimensional=shape[2] == 1, median_spacing_mm=(1.0, 1.0, 1.5),
        low_spacing_mm=(1.0, 1.0, 1.5),
    )  # fmt: skip
    plan = make_plan(facts, LABELS, replace(MEANS, target_bytes=target), width=4)
    assert (plan.network.spatial_dims == 2) == (1 in shape)
    network = build_network(plan.network, seed=0).train()
    outputs = network(torch.rand(2, 1, *plan.patch_size))
    sum(logits.square().sum() for logits in outputs).backward()
    assert outputs[0].shape == (2, 4, *plan.patch_size)
    assert all(weight.grad is not None for weight in network.parameters() if weight.ndim == 5)


def test_a_scan_of_one_slice_is_cut_across_its_single_axis() -> None:
    # All sides are 1 mm, so that no axis is the coarsest.
    plan = make_plan(fingerprint(median_shape=(30, 1, 40)), LABELS, MEANS, width=4)
    assert plan.axis_order == (0, 2, 1)
    assert plan.spacing_mm == (1.0, 1.0, None)
    assert (plan.patch_size, plan.network.spatial_dims) == ((32, 40, 1), 2)
    assert "a scan has one slice" in plan.reasons["configuration"]
    deep = replace(MEANS, configuration="3d")
    plan = make_plan(fingerprint(median_shape=(30, 1, 40)), LABELS, deep, width=4)
    assert (plan.patch_size[1], plan.network.spatial_dims) == (1, 3)


@pytest.mark.parametrize("name", ["unet", "residual_unet_m"])
def test_scans_of_one_voxel_are_refused(name: str) -> None:
    with pytest.raises(DatasetError, match="expected more than one voxel, got 1 x 1 x 1"):
        make_plan(fingerprint(median_shape=(1, 1, 1)), LABELS, MEANS, network=name)


sides = st.integers(1, 600)
spacings = st.floats(0.3, 6.0)


@given(
    st.tuples(sides, sides, sides), st.tuples(spacings, spacings, spacings),
    st.integers(20**3, 160**3),
)  # fmt: skip
def test_rules_that_always_hold(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], voxels: int
) -> None:
    patch, strides, kernels = patch_and_strides(shape, spacing, voxels)
    assert len(strides) == len(kernels) <= 6
    assert strides[0] == (1, 1, 1)
    divisor = np.prod(strides, axis=0)
    assert not np.any(np.array(patch) % divisor)
    coarsest = np.array(patch) / divisor
    assert (coarsest[divisor > 1] >= 4).all()
    assert set(np.ravel(strides)) <= {1, 2}
    assert set(np.ravel(kernels)) <= {1, 3}
    # Rounding adds less than a voxel of the coarsest stage to a side of at least four.
    assert np.prod(patch, dtype=float) <= max(voxels, 1) * 1.25**3
    # No more than needed to hold the scan.
    assert (np.array(patch) < np.array(shape) + divisor).all()


@pytest.mark.parametrize("shape", [(36, 50, 35), (90, 80, 12), (9, 9, 9), (30, 20, 3)])
def test_a_network_of_the_plan_runs(shape: tuple[int, int, int]) -> None:
    plan = make_plan(
        fingerprint(median_shape=shape, median_spacing_mm=(1.0, 1.0, 4.0)),
        LABELS, MEANS, width=4,
    )  # fmt: skip
    network = build_network(plan.network, seed=0).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(1, 1, *plan.patch_size))
    assert logits.shape == (1, 4, *plan.patch_size)


def test_what_a_plan_holds() -> None:
    plan = make_plan(fingerprint(), LABELS, MEANS, width=8)
    assert plan.labels == LABELS
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert plan.network.features == (8, 16, 32, 64)
    assert plan.network.classes == 4
    assert (plan.channels[0].clip_low, plan.channels[0].clip_high) == (-100.0, 200.0)
    assert (plan.channels[0].mean, plan.channels[0].std) == (50.0, 20.0)
    # Kidneys have sides: a mirrored patch would teach the wrong one.
    assert plan.training.augmentation.mirror_axes == ()
    assert plan.inference.mirror_axes == ()
    assert "kidney_left, kidney_right" in plan.reasons["mirror_axes"]
    assert plan.reasons["features"] == "8 channels as set"
    assert Plan.from_json(plan.to_json()) == plan


def test_channels_do_not_grow_without_end() -> None:
    large = fingerprint(median_shape=(200, 200, 200))
    means = Means(patch_voxels=128**3, batch_size=2, widths=(32,), widest=320)
    assert make_plan(large, LABELS, means).network.features == (32, 64, 128, 256, 320, 320)


def test_normalisation_by_modality() -> None:
    def of(**changes: Any) -> str:
        plan = make_plan(fingerprint(channels=channel(**changes)), LABELS, MEANS)
        return plan.channels[0].normalisation

    assert of(modality="CT") == of(modality="ct") == "ct"
    assert of(modality="MR") == of(modality="") == "zscore"
    assert of(modality="MR", zero_share=0.6) == "zscore_nonzero"
    assert of(modality="CT", zero_share=0.6) == "ct"


def test_spacing_is_the_median_but_for_a_coarse_axis() -> None:
    plan = make_plan(fingerprint(median_spacing_mm=(0.8, 0.8, 2.4)), LABELS, MEANS)
    assert plan.spacing_mm == (0.8, 0.8, 2.4)
    coarse = fingerprint(median_spacing_mm=(0.8, 0.8, 5.0), low_spacing_mm=(0.6, 0.6, 3.0))
    plan = make_plan(coarse, LABELS, MEANS)
    assert plan.spacing_mm == (0.8, 0.8, 3.0)
    assert "10th percentile" in plan.reasons["spacing_mm"]


def test_pictures_get_a_flat_network() -> None:
    means = means_for("cpu", two_dimensional=True, training_s=None)
    flat = fingerprint(two_dimensional=True, median_shape=(300, 200, 1))
    plan = make_plan(flat, LABELS, means, width=8)
    assert plan.spacing_mm == (1.0, 1.0, None)
    assert plan.patch_size[2] == 1
    assert plan.network.spatial_dims == 2


@pytest.mark.parametrize(
    ("s_per_channel", "chosen", "asked_for"),
    [
        (1e-6, 32, [8, 12, 16, 24, 32]),
        (0.0035, 16, [8, 12, 16, 24]),
        (0.0045, 12, [8, 12, 16]),
    ],
)
def test_width_by_time(s_per_channel: float, chosen: int, asked_for: list[int]) -> None:
    # 1000 steps in 60 s: a step may take 60 ms.
    means = Means(MEANS.patch_voxels, 2, (8, 12, 16, 24, 32), 256, 60.0, enough_steps=1000)
    asked: list[int] = []

    def cost(plan: Plan) -> float:
        asked.append(plan.network.features[0])
        return s_per_channel * plan.network.features[0]

    plan = make_plan(fingerprint(), LABELS, means, step_cost=cost)
    assert plan.network.features[0] == chosen
    assert asked == asked_for
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert f"{chosen} channels: about" in plan.reasons["features"]


def test_a_large_scan_gets_a_coarser_grid_when_the_time_is_short() -> None:
    means = Means(64**3, 2, (8, 16), 256, 60.0, enough_steps=1000)
    large = fingerprint(
        median_shape=(96, 80, 64), median_spacing_mm=(3.0, 3.0, 4.0), low_spacing_mm=(3.0, 3.0, 4.0)
    )

    def cost(plan: Plan) -> float:
        # 60 ms for the patch that a grid of 6 mm has.
        return 0.05 * float(np.prod(plan.patch_size)) / (48 * 40 * 44)

    plan = make_plan(large, LABELS, means, step_cost=cost)
    assert plan.spacing_mm == (6.0, 6.0, 6.0)
    assert "2 times coarser" in plan.reasons["spacing_mm"]
    # A small scan keeps its grid: its organs would be lost.
    small = fingerprint(median_shape=(36, 50, 35))
    plan = make_plan(small, LABELS, means, step_cost=lambda plan: 1.0)
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert plan.network.features[0] == 8


def test_without_a_budget_nothing_is_measured() -> None:
    def refuse(plan: Plan) -> float:
        raise AssertionError("measured")

    assert make_plan(fingerprint(), LABELS, MEANS, step_cost=refuse).network.features[0] == 32
    plan = make_plan(fingerprint(), LABELS, MEANS, step_cost=refuse, width=12)
    assert plan.network.features[0] == 12


@pytest.mark.parametrize(("step_s", "measured"), [(0.1, [8, 12]), (60.0, [8])])
def test_a_width_that_was_set_is_timed_where_that_costs_little(
    step_s: float, measured: list[int]
) -> None:
    asked: list[int] = []

    def cost(plan: Plan) -> float:
        asked.append(plan.network.features[0])
        return step_s

    timed = replace(MEANS, training_s=700.0)
    plan = make_plan(fingerprint(), LABELS, timed, step_cost=cost, width=12)
    assert plan.network.features[0] == 12
    assert asked == measured
    small = make_plan(fingerprint(), LABELS, MEANS, width=8)
    fit = int(700 / (step_s if len(measured) == 2 else step_s * work(plan) / work(small)))
    assert plan.training.ema_decay == pytest.approx(np.clip(1 - 30 / fit, 0.9, 0.999), 1e-3)


def work(plan: Plan) -> float:
    """GFLOPs of a batch."""
    cost = network_cost(plan.network, plan.patch_size)
    return plan.training.batch_size * cost.gflops


@pytest.mark.parametrize(
    ("network", "training_s", "advice"),
    [
        # 1e-3 s a GFLOP: L takes longer than M, M than a U-Net of any width.
        ("residual_unet_l", 3000.0, "--network residual_unet_m gets about"),
        ("residual_unet_l", 600.0, "--network residual_unet_m gets about"),
        ("residual_unet_m", 40.0, "leave --preset and --network away: a U-Net of "),
        ("mednext_l", 1.0, "no network gets as many: give a longer --budget"),
    ],
)
def test_a_preset_that_gets_too_few_steps_is_kept_and_told(
    network: str, training_s: float, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Plan] = []

    def cost(plan: Plan) -> float:
        asked.append(plan)
        return 1e-3 * work(plan)

    facts = fingerprint(cases=200)
    means = replace(MEANS, training_s=training_s, enough_steps=1000)
    plan = make_plan(facts, LABELS, means, network=network, step_cost=cost)
    untimed = make_plan(facts, LABELS, MEANS, network=network)
    assert (plan.network, plan.patch_size) == (untimed.network, untimed.patch_size)
    fit = int(training_s / (1e-3 * work(plan)))
    assert fit < 1000
    assert f"about {fit} steps fit into the {training_s:.0f} s" in caplog.text
    assert "1000 are wanted" in caplog.text
    assert advice in caplog.text
    assert advice in plan.reasons["features"]
    # The small network is always measured, the preset where four steps take a twentieth.
    assert len(asked) == 1 + (4e-3 * work(plan) <= 0.05 * training_s)
    assert asked[0].network.features[0] == 8
    assert plan.training.ema_decay == pytest.approx(np.clip(1 - 30 / max(fit, 1), 0.9, 0.999), 1e-3)


def test_a_preset_that_fits_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    means = replace(MEANS, training_s=1e6, enough_steps=1000)
    changes: dict[str, object] = {"network.convolutions": 3, "training.ema_decay": 0.5}
    plan = make_plan(
        fingerprint(), LABELS, means, network="residual_unet_m", changes=changes,
        step_cost=lambda plan: 1.0,
    )  # fmt: skip
    told = "32 channels, as residual_unet_m has: about 1000000 steps fit, 1000 are wanted"
    assert plan.reasons["features"] == told
    assert plan.training.ema_decay == 0.5
    assert caplog.text == ""


def test_a_memory_that_leaves_too_few_steps_is_told(caplog: pytest.LogCaptureFixture) -> None:
    means = replace(MEANS, training_s=60.0, enough_steps=1000, target_bytes=400_000_000)
    make_plan(fingerprint(), LABELS, means, step_cost=lambda plan: 1.0)
    assert "unet: about 60 steps fit into the 60 s" in caplog.text
    assert "leave --preset and --target-memory away" in caplog.text


def test_a_label_in_no_case() -> None:
    absent = fingerprint(label_cases={"liver": 3, "kidney_left": 0, "kidney_right": 0})
    with pytest.raises(DatasetError, match=r"none with kidney_left, kidney_right.*--labels"):
        make_plan(absent, LABELS, MEANS, width=4)


def test_labels_of_an_atlas_that_no_case_shows_are_told_and_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    atlas = LabelSet.from_names({n: f"part_{n}" for n in range(1, 41)})
    cases = {name: int(n < 30) for n, name in enumerate(atlas.names)}
    seen = fingerprint(label_cases=cases, label_voxel_share=dict.fromkeys(atlas.names, 0.01))
    plan = make_plan(seen, atlas, MEANS, width=4)
    assert "part_31, part_32" in plan.reasons["absent_labels"]
    assert "and 2 more" in plan.reasons["absent_labels"]
    assert "--labels leaves them out" in caplog.text
    assert plan.labels == atlas
    nothing = fingerprint(label_cases=dict.fromkeys(atlas.names, 0))
    with pytest.raises(DatasetError, match=r"none with part_1"):
        make_plan(nothing, atlas, MEANS, width=4)


def test_changes_by_dotted_keys() -> None:
    changes: dict[str, object] = {
        "training.learning_rate": 0.005, "training.augmentation.rotation_degrees": 10,
        "patch_size": [16, 24, 8], "inference.step": 0.7,
    }  # fmt: skip
    plan = make_plan(fingerprint(), LABELS, MEANS, width=8, changes=changes)
    assert plan.training.learning_rate == 0.005
    assert plan.training.augmentation.rotation_degrees == 10
    assert plan.patch_size == (16, 24, 8)
    assert plan.inference.step == 0.7


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training.learning_speed": 1}, r"plan\.training\.learning_speed: expected a key"),
        ({"patch_size.x": 1}, r"plan\.patch_size\.x"),
        ({"no.such.room": 1}, r"plan\.no\.such\.room"),
        ({"training.learning_rate": -1}, r"training\.learning_rate"),
        ({"patch_size": [17, 24, 8]}, "multiple of"),
        ({"patch_size": "large"}, "patch_size"),
        ({"patch_size": [0, 24, 8]}, r"patch_size\.0"),
        ({"spacing_mm": [0, 1, 1]}, r"spacing_mm\.0"),
        ({"network.strides": [[1, 1, 1], [0, 2, 2], [2, 2, 2], [2, 2, 2]]}, "strides"),
        ({"network.strides": [[2, 2, 2]] * 4}, "first stride"),
        ({"network.kernels": [[2, 2, 2]] * 4}, "odd"),
        ({"postprocess": [{"step": "largest", "label": "lung"}]}, "unknown labels: lung"),
    ],
)
def test_changes_that_do_not_fit(changes: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        make_plan(fingerprint(), LABELS, MEANS, width=8, changes=changes)


def test_a_short_axis_does_not_flatten_the_kernels_of_the_others() -> None:
    # The third side ends at 6 voxels while the others are pooled on: their spacing then is
    # twice its own, but what was seen in three dimensions stays so.
    _, strides, kernels = patch_and_strides((48, 36, 25), (7.0, 7.0, 7.0), 48 * 36 * 25)
    assert strides[-1] == (2, 2, 1)
    assert set(kernels) == {(3, 3, 3)}
