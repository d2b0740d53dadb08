"""Name to network: one dictionary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from medseg.core.errors import SettingsError
from medseg.core.plan import NetworkPlan
from medseg.networks.residual_unet import ResidualUNet
from medseg.networks.unet import UNet

NETWORKS: dict[str, Callable[[NetworkPlan], nn.Module]] = {
    "unet": UNet,
    "residual_unet": ResidualUNet,
}


def check_network(name: str) -> None:
    """Refuse a name that no network has.

    Raises:
        SettingsError: With the names that there are.
    """
    if name not in NETWORKS:
        raise SettingsError(
            f"network '{name}'", expected=f"one of {', '.join(sorted(NETWORKS))}", got=name
        )


def build_network(plan: NetworkPlan, *, seed: int | None = None) -> nn.Module:
    """Build a network with fresh weights, a function of ``seed`` alone where it is given.

    Raises:
        SettingsError: No network has that name.
    """
    check_network(plan.name)
    if seed is None:
        return NETWORKS[plan.name](plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[plan.name](plan)
