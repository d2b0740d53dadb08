"""A whole plan for a network of one width: every choice that time does not make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from medseg.core.errors import SettingsError
from medseg.core.labels import LabelSet
from medseg.core.plan import Fingerprint, InferencePlan, Plan, Spacing, TrainingPlan, Triple
from medseg.planning.choices import (
    choose_augmentation,
    choose_axis_order,
    choose_dimensions,
    choose_normalisation,
    choose_spacing,
    coarsening_for,
)
from medseg.planning.memory import LEAST_VOXELS, StepBytes, largest_batch, largest_patch
from medseg.planning.networks import Frame
from medseg.planning.presets import PRESETS, Ground, fit
from medseg.planning.symmetry import confirmed_pairs, mirror_axes
from medseg.planning.topology import as_triple, patch_and_strides

_MOST_IN_A_BATCH = 8
# A batch with more of all voxels than this sees the same cases again and again (nnU-Net's rule).
_MOST_OF_ALL_VOXELS = 0.05
_GB = 1e9
_OPTIMISERS = {
    "muon": "kernels learn in all directions alike; AdamW needs about twice the steps",
    "adamw": "what this network was published with",
}


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        network: A network or a preset.
        width: Channels of the finest stage.
        widest: Most channels of any stage.
        patch_voxels: Most voxels of a patch, where no memory is given.
        batch_size: Patches per step, the least where a memory is given.
        coarsening: Factor by which the grid gets coarser, for lack of time.
        configuration: One of ``settings.CONFIGURATIONS``.
        target_bytes: What a training step may take of the device's memory; None leaves it
            to ``patch_voxels``.
        step_bytes: What a step of a plan takes, estimated or measured.
    """

    network: str
    width: int
    widest: int
    patch_voxels: int
    batch_size: int
    coarsening: float = 1.0
    configuration: str = "auto"
    target_bytes: int | None = None
    step_bytes: StepBytes | None = None


@dataclass(frozen=True)
class _Grid:
    """Where patches are cut from, in the order of the working axes."""

    axis_order: Triple
    spacing_mm: Spacing
    shape: Triple
    voxel_mm: tuple[float, float, float]
    reason: str


def draft_plan(fingerprint: Fingerprint, labels: LabelSet, wish: Wish) -> Plan:
    """Decide all but what time decides.

    Args:
        fingerprint: Of the training cases.
        labels: What to learn.
        wish: Network, size and limits.

    Raises:
        SettingsError: Not even the smallest patch fits into the memory; or there is no such
            configuration or network.
    """
    fine, fine_patch = _fine_patch(fingerprint, wish.patch_voxels)
    seen = share_seen(fingerprint, wish.patch_voxels)
    dims = choose_dimensions(fingerprint, wish.configuration, seen=seen)
    factor = coarsening_for(fine.shape, fine_patch) if dims.taken == "3d-low" else 1.0
    grid = _grid(fingerprint, dims.taken, wish.coarsening * factor)
    preset = PRESETS.get(wish.network)

    def plan_of(voxels: int) -> Plan:
        return _plan_on(grid, fingerprint, labels, wish=wish, voxels=voxels)

    if wish.target_bytes is None or (preset is not None and preset.memory_gb):
        plan = plan_of(wish.patch_voxels)
    else:
        plan = _within_memory(plan_of, grid, fingerprint, wish=wish)
    return plan.model_copy(update={"reasons": {**dims.reasons, **plan.reasons}})


def share_seen(fingerprint: Fingerprint, patch_voxels: int) -> float:
    """Share of a typical scan that a 3D patch on the finest grid shows.

    Args:
        fingerprint: Of the training cases.
        patch_voxels: Most voxels of a patch.
    """
    fine, patch = _fine_patch(fingerprint, patch_voxels)
    return min(1.0, prod(patch) / prod(fine.shape))


def _fine_patch(fingerprint: Fingerprint, patch_voxels: int) -> tuple[_Grid, Triple]:
    fine = _grid(fingerprint, "3d", 1.0)
    return fine, patch_and_strides(fine.shape, fine.voxel_mm, patch_voxels)[0]


def _grid(fingerprint: Fingerprint, taken: str, coarsening: float) -> _Grid:
    order = choose_axis_order(fingerprint, taken)
    chosen, reason = choose_spacing(fingerprint, coarsening)
    median_mm = fingerprint.median_spacing_mm
    spacing = [chosen[axis] for axis in order]
    if taken == "2d":
        spacing[2] = None
    old_mm = np.array([median_mm[axis] for axis in order])
    voxel_mm = np.array([new or old for new, old in zip(spacing, old_mm, strict=True)])
    size = np.array([fingerprint.median_shape[axis] for axis in order]) * old_mm / voxel_mm
    if taken == "2d":
        size[2] = 1
    a, b, c = (float(side) for side in voxel_mm)
    shape = as_triple(np.maximum(1, np.round(size)))
    return _Grid(order, (spacing[0], spacing[1], spacing[2]), shape, (a, b, c), reason)


def _within_memory(
    plan_of: Callable[[int], Plan], grid: _Grid, fingerprint: Fingerprint, *, wish: Wish
) -> Plan:
    assert wish.target_bytes is not None
    assert wish.step_bytes is not None
    plan = largest_patch(
        plan_of,
        target_bytes=wish.target_bytes,
        step_bytes=wish.step_bytes,
        most_voxels=prod(grid.shape),
    )
    if plan is None:
        needed = wish.step_bytes(plan_of(LEAST_VOXELS))
        raise SettingsError(
            "--target-memory",
            expected=f"at least {needed / _GB:.1f} GB for the smallest patch of {wish.network} "
            f"with {wish.width} channels",
            got=f"{wish.target_bytes / _GB:.2f} GB",
            cure="Give more, or choose --preset small or fewer --set base_features=.",
        )
    share = _MOST_OF_ALL_VOXELS * fingerprint.cases * prod(grid.shape) / prod(plan.patch_size)
    most = min(_MOST_IN_A_BATCH, int(share))
    plan = largest_batch(
        plan, target_bytes=wish.target_bytes, step_bytes=wish.step_bytes, most=most
    )
    taken = wish.step_bytes(plan) / _GB
    limit = wish.target_bytes / _GB
    reasons = {
        "patch_size": f"the largest whose step fits into {limit:.1f} GB ({taken:.1f} GB are "
        f"taken), at most the median scan {grid.shape}",
        "batch_size": f"what the memory leaves, at most {_MOST_IN_A_BATCH} and "
        f"{100 * _MOST_OF_ALL_VOXELS:.0f} % of all voxels",
    }
    return plan.model_copy(update={"reasons": {**plan.reasons, **reasons}})


def _plan_on(
    grid: _Grid, fingerprint: Fingerprint, labels: LabelSet, *, wish: Wish, voxels: int
) -> Plan:
    flat = grid.shape[2] == 1 and (fingerprint.two_dimensional or grid.spacing_mm[2] is None)
    fitted = fit(
        wish.network,
        Ground(grid.shape, grid.voxel_mm, voxels, fingerprint.cases),
        Frame(
            2 if flat else 3, len(fingerprint.channels), len(labels) + (not fingerprint.regions),
            width=wish.width, widest=wish.widest,
        ),
    )  # fmt: skip
    # Regions overlap: what is exchanged in a mirror would be more than two indices.
    pairs, pairs_reason = confirmed_pairs(fingerprint, labels)
    pairs = () if fingerprint.regions else pairs
    mirrored, mirror_reason = mirror_axes(fingerprint, labels, pairs)
    augmentation, augmentation_reason = choose_augmentation(fingerprint)
    working = sorted(grid.axis_order.index(axis) for axis in mirrored)
    return Plan(
        labels=labels,
        channels=tuple(choose_normalisation(facts) for facts in fingerprint.channels),
        modality=fingerprint.channels[0].modality,
        activation="regions" if fingerprint.regions else "softmax",
        ignore=fingerprint.ignore,
        axis_order=grid.axis_order,
        spacing_mm=grid.spacing_mm,
        patch_size=fitted.patch,
        network=fitted.network,
        training=TrainingPlan(
            batch_size=fitted.batch_size or wish.batch_size,
            optimiser=fitted.network.kind.optimiser,
            learning_rate=fitted.network.kind.learning_rate,
            augmentation=augmentation.model_copy(
                update={"mirror_axes": tuple(axis for axis in working if axis < 2 or not flat)}
            ),
        ),
        inference=InferencePlan(left_right_pairs=pairs),
        reasons={
            "spacing_mm": grid.reason,
            "patch_size": fitted.reason
            or f"median scan {fingerprint.median_shape}, at most {voxels} voxels, rounded up to "
            "what the strides need",
            "strides": "each axis is halved while it has 8 voxels; coarse axes wait until the "
            "fine ones have caught up",
            "batch_size": "as this device can be asked for",
            "normalisation": "CT: clipped to foreground percentiles; else z-score of each scan",
            "resampling": "linear for images, a vote of the neighbours for labels",
            "mirror_axes": mirror_reason,
            "left_right_pairs": pairs_reason,
            "augmentation": augmentation_reason,
            "optimiser": _OPTIMISERS[fitted.network.kind.optimiser],
            "learning_rate": f"usual for {fitted.network.name}",
        },
    )
