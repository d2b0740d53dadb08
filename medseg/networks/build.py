"""Name to network: one dictionary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from medseg.core.errors import SettingsError
from medseg.core.plan import NetworkPlan
from medseg.networks.unet import UNet

NETWORKS: dict[str, Callable[[NetworkPlan], nn.Module]] = {"unet": UNet}


def build_network(plan: NetworkPlan, *, seed: int | None = None) -> nn.Module:
    """Build a network with fresh weights, a function of ``seed`` alone where it is given.

    Raises:
        SettingsError: No network has that name.
    """
    if plan.name not in NETWORKS:
        raise SettingsError(
            f"network '{plan.name}'",
            expected=f"one of {', '.join(sorted(NETWORKS))}",
            got=plan.name,
        )
    if seed is None:
        return NETWORKS[plan.name](plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[plan.name](plan)
