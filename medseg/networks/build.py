"""Name to network: one dictionary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from medseg.core.errors import SettingsError
from medseg.core.plan import NetworkPlan
from medseg.networks.deeplab import DeepLab
from medseg.networks.fcn import FCN
from medseg.networks.monai_networks import (
    attention_unet,
    dynunet,
    mednext,
    segresnet,
    swin_unetr,
    unetr,
)
from medseg.networks.residual_unet import ResidualUNet
from medseg.networks.tile_network import TileNetwork
from medseg.networks.unet import UNet

Builder = Callable[[NetworkPlan], nn.Module]


def _for_tiles(build: Builder) -> Builder:
    return lambda plan: TileNetwork(build(plan), plan)


# The names are those of ``medseg.core.network_options.NETWORK_KINDS``.
NETWORKS: dict[str, Builder] = {
    "unet": UNet,
    "residual_unet": ResidualUNet,
    "fcn": _for_tiles(FCN),
    "deeplab": _for_tiles(DeepLab),
    "dynunet": _for_tiles(dynunet),
    "attention_unet": _for_tiles(attention_unet),
    "segresnet": _for_tiles(segresnet),
    "mednext": _for_tiles(mednext),
    "swin_unetr": _for_tiles(swin_unetr),
    "unetr": _for_tiles(unetr),
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
        MissingPackageError: It needs a package that is not installed.
    """
    check_network(plan.name)
    if seed is None:
        return NETWORKS[plan.name](plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[plan.name](plan)
