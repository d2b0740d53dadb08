"""What this machine can do, measured: memory of a step; precision and order of a CPU's."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch

from medseg.core.plan import Plan, edited

if TYPE_CHECKING:
    from medseg.training.cache import CachedCase

# Below this the time of a whole step hardly changes, and fp32 is the safer choice.
_GAIN_THAT_PAYS = 1.2
_TRIES = 4
# Results are the same, so that little is enough; less than this may be chance.
_FORMAT_THAT_PAYS = 1.05


def measured_step_bytes(plan: Plan, case: CachedCase, device: torch.device) -> int:
    """Bytes that torch holds on a CUDA device at the peak of a few real steps.

    Args:
        plan: Patch, batch and network.
        case: Enough to cut patches from.
        device: A CUDA device.

    Returns:
        ``sys.maxsize`` where the device has too little.
    """
    # It loads all that trains, of which a plan may need nothing.
    from medseg.training.budget import measure_step

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        measure_step(plan, case, device)
    except torch.OutOfMemoryError:
        return sys.maxsize
    finally:
        torch.cuda.empty_cache()
    return int(torch.cuda.max_memory_reserved(device))


class QuickerFormat:
    """Seconds of a step in the memory format that is quicker for a plan.

    Which one that is depends on the processor, the precision and the number of channels, so
    that whole steps are compared.

    Args:
        step_cost: Seconds of a step of a plan, measured.
    """

    def __init__(self, step_cost: Callable[[Plan], float]) -> None:
        self._step_cost = step_cost
        self._gains: dict[str, float] = {}

    def __call__(self, plan: Plan) -> float:
        """Seconds of a step; where the network allows both formats, both are measured."""
        usual = self._step_cost(plan)
        if not plan.network.kind.channels_last:
            return usual
        other = self._step_cost(edited(plan, {"training.memory_format": "channels_last"}))
        self._gains[_sizes(plan)] = usual / other
        return min(usual, other)

    def settled(self, plan: Plan) -> Plan:
        """The plan with channels last, and the reason, if that was clearly quicker."""
        gain = self._gains.get(_sizes(plan), 0.0)
        if gain < _FORMAT_THAT_PAYS:
            return plan
        reason = f"a step is {gain:.2f} times as fast with channels last on this processor"
        chosen = edited(plan, {"training.memory_format": "channels_last"})
        return chosen.model_copy(update={"reasons": {**plan.reasons, "memory_format": reason}})


def _sizes(plan: Plan) -> str:
    """What the time of a step depends on."""
    size = plan.model_dump_json(include={"network", "patch_size"})
    return f"{size} {plan.training.batch_size} {plan.training.precision}"


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
