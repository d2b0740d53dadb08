"""Measure what a step and a case cost here and now, so that a run ends when it should."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import prod

import numpy as np
import torch

from medseg.core.geometry import Geometry
from medseg.core.plan import Fingerprint, Plan
from medseg.inference.predictor import Predictor
from medseg.networks.build import build_network
from medseg.training.cache import CachedCase
from medseg.training.kept_memory import freed_memory_kept
from medseg.training.loader import Batches
from medseg.training.step import Stepper, new_state, update_average
from medseg.transforms.preprocess import RestoreRecord

_PROBE_STEPS = 3


def typical_case(plan: Plan, fingerprint: Fingerprint) -> CachedCase:
    """A case of noise with the median shape on the plan's grid: enough to time with."""
    return _noise(plan, _typical_shape(plan, fingerprint))


def _typical_shape(plan: Plan, fingerprint: Fingerprint) -> list[int]:
    """Of the median scan on the plan's grid, in the order of its axes."""
    shape = []
    for axis, new in zip(plan.axis_order, plan.spacing_mm, strict=True):
        side, old = fingerprint.median_shape[axis], fingerprint.median_spacing_mm[axis]
        shape.append(max(1, round(side * old / (new or old))))
    return shape


def _noise(plan: Plan, shape: Sequence[int]) -> CachedCase:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((len(plan.channels), *shape), dtype=np.float32)
    label = rng.integers(0, plan.scheme.indices, shape).astype(plan.scheme.dtype)
    middle = {1: np.array([[side // 2 for side in shape]])}
    earlier = np.minimum(label, plan.cascade_labels) if plan.cascade_labels else None
    return CachedCase("noise", image, label, middle, earlier=earlier)


def measure_step(
    plan: Plan, case: CachedCase, device: torch.device, *, spacious: bool = True
) -> float:
    """Seconds of one training step, batch preparation included.

    The quickest of a few, the first left out: the others measure the machine's other work.

    Args:
        plan: Patch, batch and network.
        case: Enough to cut patches from.
        device: Where it runs.
        spacious: As of :class:`medseg.training.loop.TrainJob`.
    """
    state = new_state(plan, seed=0, device=device)
    batches = Batches([case], plan, seed=0, device=device)
    step_once = Stepper(state, plan, device)
    took = []
    with freed_memory_kept(device.type, spacious=spacious):
        for step in range(1 + _PROBE_STEPS):
            started = time.perf_counter()
            loss, _ = step_once([batches.batch(step)], 1e-6)
            float(loss)
            update_average(state, plan.training.ema_decay)
            took.append(time.perf_counter() - started)
    return min(took[1:])


def measure_case(plan: Plan, case: CachedCase, device: torch.device) -> float:
    """Seconds to run the network over a case."""
    predictor = Predictor([build_network(plan.network, seed=0)], plan, device)
    voxels = case.volume(plan)
    took = []
    for _ in range(2):
        started = time.perf_counter()
        predictor.logits(voxels)
        took.append(time.perf_counter() - started)
    return min(took)


def measure_mask(plan: Plan, fingerprint: Fingerprint, device: torch.device) -> float:
    """Seconds, beside those of the network, to make a mask of a typical case from its logits.

    Adding up, restoring, and saying how sure the network is, grow with voxels and labels: a
    scan of no more than a patch is timed, and what it took is multiplied.
    """
    whole = _typical_shape(plan, fingerprint)
    small, sides = [min(pair) for pair in zip(plan.patch_size, whole, strict=True)], [1, 1, 1]
    for place, axis in enumerate(plan.axis_order):
        old = fingerprint.median_spacing_mm[axis]
        sides[axis] = max(1, round(small[place] * (plan.spacing_mm[place] or old) / old))
    geometry = Geometry(
        (sides[0], sides[1], sides[2]), np.diag([*fingerprint.median_spacing_mm, 1])
    )
    record = RestoreRecord.for_plan(geometry, plan)
    voxels = _noise(plan, record.working.shape).volume(plan)
    sure = Predictor([build_network(plan.network, seed=0)], plan, device, confidence=True)
    took = []
    for _ in range(2):
        started = time.perf_counter()
        sure.infer(voxels, record)
        between = time.perf_counter()
        sure.logits(voxels)
        took.append(2 * between - started - time.perf_counter())
    return max(0.0, min(took)) * prod(whole) / prod(record.working.shape)
