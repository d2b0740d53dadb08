"""What a network costs, found without running it: parameters, arithmetic, memory.

The network is built and run on torch's ``meta`` device, where tensors have a size and nothing
else.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from medseg.core.network_plan import NetworkPlan, Triple
from medseg.networks.build import build_network


@dataclass(frozen=True)
class NetworkCost:
    """Of one tile, in evaluation mode.

    Attributes:
        parameters: Numbers that are learned.
        gflops: Floating-point operations in 10^9; a multiplication and an addition are two.
        activation_bytes: The most that lives at a time between two operations, in float32.
    """

    parameters: int
    gflops: float
    activation_bytes: int


@lru_cache(maxsize=64)
def network_cost(plan: NetworkPlan, patch: Triple) -> NetworkCost:
    """Parameters, arithmetic and memory of a network.

    Args:
        plan: The network.
        patch: (I, J, K) of the tile.

    Raises:
        SettingsError: No network has that name.
        MissingPackageError: It needs a package that is not installed.
    """
    with torch.device("meta"):
        network = build_network(plan).eval()
        tile = torch.empty((1, plan.in_channels, *patch))
    alive = _Alive()
    counting = FlopCounterMode(display=False)
    with torch.no_grad(), counting, alive, torch.device("meta"):
        network(tile)
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        gflops=counting.get_total_flops() / 1e9,
        activation_bytes=alive.most,
    )


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        before = {
            value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if _real(value)
        }
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if _real(value):
                self._hold(value, before)
        self.most = max(self.most, self.now)
        return result

    def _hold(self, value: Tensor, before: set[int]) -> None:
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._holders:
            if key in before:  # a view of a weight or of the tile
                return
            self._holders[key] = 0
            self.now += size
        self._holders[key] += 1
        weakref.finalize(value, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self.now -= size


def _real(value: object) -> bool:
    return isinstance(value, Tensor)
