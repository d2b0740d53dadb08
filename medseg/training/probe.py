"""What this machine can do, measured: the memory of a step on a GPU, half precision on a CPU."""

from __future__ import annotations

import sys
import time
from functools import cache

import torch

from medseg.core.plan import Plan
from medseg.training.budget import measure_step
from medseg.training.cache import CachedCase

# Below this the time of a whole step hardly changes, and fp32 is the safer choice.
_GAIN_THAT_PAYS = 1.2
_TRIES = 4


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


def bf16_pays(device: torch.device) -> bool:
    """Whether a training step is quicker in bf16 on this CPU; False elsewhere."""
    return device.type == "cpu" and bf16_gain() >= _GAIN_THAT_PAYS


@cache
def bf16_gain() -> float:
    """How many times quicker a convolution learns in bf16 than in fp32 on this CPU.

    Processors with instructions for bf16 reach 2; others compute it piece by piece, and slowly.
    By the CPU time of one thread, so that other work on the machine counts little.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng([]):
        convolution = torch.nn.Conv3d(16, 32, 3, padding=1)
        patch = torch.randn(1, 16, 20, 20, 20)
    torch.set_num_threads(1)
    try:
        # In turns, and the first of each left out.
        took = [
            [_seconds(convolution, patch, half=half) for half in (False, True)]
            for _ in range(1 + _TRIES)
        ][1:]
    finally:
        torch.set_num_threads(threads)
    full, half = (float(min(times)) for times in zip(*took, strict=True))
    return full / half


def _seconds(convolution: torch.nn.Module, patch: torch.Tensor, *, half: bool) -> float:
    """CPU time of a forward and a backward pass in this thread."""
    started = time.thread_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = convolution(patch)
    found.float().square().mean().backward()
    return time.thread_time() - started
