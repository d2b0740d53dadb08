"""What a training step really takes of a GPU's memory."""

from __future__ import annotations

import sys

import torch

from medseg.core.plan import Plan
from medseg.training.budget import measure_step
from medseg.training.cache import CachedCase


def measured_step_bytes(plan: Plan, case: CachedCase, device: torch.device) -> int:
    """Bytes that torch holds on a CUDA device at the peak of a few real steps.

    Args:
        plan: Patch, batch and network.
        case: Enough to cut patches from.
        device: A CUDA device.

    Returns:
        ``sys.maxsize`` where the device has too little.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        measure_step(plan, case, device)
    except torch.OutOfMemoryError:
        return sys.maxsize
    finally:
        torch.cuda.empty_cache()
    return int(torch.cuda.max_memory_reserved(device))
