"""Measure what a step and a case cost here and now, so that a run ends when it should."""

from __future__ import annotations

import time

import numpy as np
import torch

from medseg.core.plan import Fingerprint, Plan
from medseg.inference.predictor import Predictor
from medseg.networks.build import build_network
from medseg.training.cache import CachedCase
from medseg.training.loader import Batches
from medseg.training.step import Stepper, new_state, update_average

# What remains beside the cases: the last picture, the package, closing files.
_CLOSING_S = 8.0
_PROBE_STEPS = 3


def typical_case(plan: Plan, fingerprint: Fingerprint) -> CachedCase:
    """A case of noise with the median shape on the plan's grid: enough to time with."""
    shape = []
    for axis, new in zip(plan.axis_order, plan.spacing_mm, strict=True):
        side, old = fingerprint.median_shape[axis], fingerprint.median_spacing_mm[axis]
        shape.append(max(1, round(side * old / (new or old))))
    rng = np.random.default_rng(0)
    image = rng.standard_normal((len(plan.channels), *shape), dtype=np.float32)
    label = rng.integers(0, plan.scheme.indices, shape).astype(plan.scheme.dtype)
    middle = {1: np.array([[side // 2 for side in shape]])}
    earlier = np.minimum(label, plan.cascade_labels) if plan.cascade_labels else None
    return CachedCase("noise", image, label, middle, earlier=earlier)


def measure_step(plan: Plan, case: CachedCase, device: torch.device) -> float:
    """Seconds of one training step, batch preparation included.

    The quickest of a few, the first left out: the others measure the machine's other work.
    """
    state = new_state(plan, seed=0, device=device)
    batches = Batches([case], plan, seed=0, device=device)
    step_once = Stepper(state, plan, device)
    took = []
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


def closing_seconds(case_s: float, *, inner: int, validation: int) -> float:
    """Time to set aside for what follows the last step.

    Args:
        case_s: From ``measure_case``.
        inner: Cases kept back, looked at after the last step and for the post-processing.
        validation: Cases of the fold, which are also read, restored, scored and drawn.
    """
    return _CLOSING_S + 2.6 * case_s * inner + validation * (1.5 * case_s + 0.1)


def affordable_looks(case_s: float, *, inner: int, looks: int, training_s: float | None) -> int:
    """How many inner cases can be looked at each time within a twentieth of the training."""
    if training_s is None:
        return inner
    return int(max(1, min(inner, 0.05 * training_s / max(looks * case_s, 1e-9))))
