"""What a training step takes of memory, worked out without taking it.

The network runs once on torch's ``meta`` device, where tensors have a shape and no content:
autograd says what it would keep for the way back. To this come weights with their gradients
and the optimiser's two moments and the mean of the weights, and what the loss and the largest
layer need for a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.nn import Module

from medseg.core.plan import Plan, edited
from medseg.networks.build import build_network

# Weights, gradients, two moments of AdamW, mean of the weights: float32 each.
_BYTES_PER_WEIGHT = 5 * 4
# The loss keeps logits, log-probabilities, probabilities and their gradient, in float32.
_LOSS_COPIES = 4
# What libraries take besides: other layouts of a tensor while a layer works on it.
_ROOM, _FIXED_BYTES = 1.15, 64_000_000
#: Of a patch: below this there is nothing to pool.
LEAST_VOXELS = 8**3
StepBytes = Callable[[Plan], int]


def estimated_step_bytes(plan: Plan, *, half: bool = False) -> int:
    """Bytes that one training step of a plan takes on its device, libraries left out.

    Args:
        plan: Patch, batch and network.
        half: Layers run in 16 bits (autocast), so that what is kept is half as large.
    """
    with torch.device("meta"):
        network = build_network(plan.network).train()
        x = torch.empty(plan.training.batch_size, plan.network.in_channels, *plan.patch_size)
    kept, largest = _kept_bytes(network, x)
    weights = sum(weight.numel() for weight in network.parameters())
    voxels = plan.training.batch_size * prod(plan.patch_size)
    loss = _LOSS_COPIES * 4 * voxels * plan.network.classes
    layers = (kept + 2 * largest) // (2 if half else 1)
    return int(_ROOM * (weights * _BYTES_PER_WEIGHT + layers + loss)) + _FIXED_BYTES


def _kept_bytes(network: Module, x: Tensor) -> tuple[int, int]:
    """Bytes of all tensors that autograd keeps, and of the largest."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in sizes and not isinstance(tensor, torch.nn.Parameter):
            alive.append(tensor)  # so that no other storage gets the same number
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    return sum(sizes.values()), max(sizes.values(), default=0)


def largest_patch(
    plan_of: Callable[[int], Plan], *, target_bytes: int, step_bytes: StepBytes, most_voxels: int
) -> Plan | None:
    """The plan with the largest patch whose step fits.

    Args:
        plan_of: A plan for a number of voxels of a patch.
        target_bytes: What a step may take.
        step_bytes: What a step of a plan takes, estimated or measured.
        most_voxels: Beyond this a patch would hold more than the scan.

    Returns:
        None where not even the smallest patch fits.
    """
    low, high = LEAST_VOXELS, max(most_voxels, LEAST_VOXELS)
    best = None
    if step_bytes(widest := plan_of(high)) <= target_bytes:
        return widest
    # Ten halvings of the logarithm: a patch within a hundredth of the largest.
    while high / low > 1.03:
        middle = int((low * high) ** 0.5)
        plan = plan_of(middle)
        if step_bytes(plan) <= target_bytes:
            best, low = plan, middle
        else:
            high = middle
    return best


def largest_batch(plan: Plan, *, target_bytes: int, step_bytes: StepBytes, most: int) -> Plan:
    """The plan with the largest batch up to ``most`` whose step fits; at least its own."""
    best = plan
    for size in range(plan.training.batch_size + 1, most + 1):
        larger = edited(plan, {"training.batch_size": size})
        if step_bytes(larger) > target_bytes:
            break
        best = larger
    return best
