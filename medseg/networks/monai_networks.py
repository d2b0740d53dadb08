"""MONAI's networks, built from a plan. MONAI is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from medseg.core.network_options import (
    DynunetOptions,
    MednextOptions,
    SegresnetOptions,
    SwinUnetrOptions,
    UnetrOptions,
)
from medseg.core.optional import require
from medseg.core.plan import NetworkPlan


def _common(plan: NetworkPlan) -> dict[str, Any]:
    return {
        "spatial_dims": plan.spatial_dims,
        "in_channels": plan.in_channels,
        "out_channels": plan.classes,
    }


def segresnet(plan: NetworkPlan) -> nn.Module:
    """MONAI's SegResNet; ``encoder_counts`` and ``decoder_counts`` count residual blocks."""
    from monai.networks.nets.segresnet import SegResNet

    assert isinstance(plan.options, SegresnetOptions)
    network: nn.Module = SegResNet(
        **_common(plan),
        init_filters=plan.features[0],
        blocks_down=plan.encoder_counts,
        blocks_up=plan.decoder_counts[::-1],
        norm=("GROUP", {"num_groups": plan.options.groups}),
    )
    return network


def dynunet(plan: NetworkPlan) -> nn.Module:
    """MONAI's DynUNet, without deep supervision."""
    from monai.networks.nets.dynunet import DynUNet

    assert isinstance(plan.options, DynunetOptions)
    dims = plan.spatial_dims
    strides = [stride[:dims] for stride in plan.strides]
    network: nn.Module = DynUNet(
        **_common(plan),
        kernel_size=[kernel[:dims] for kernel in plan.kernels],
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=plan.features,
        res_block=plan.options.residual,
    )
    # The same modules stand inside ``skip_layers``; a weights file holds each of them once.
    for name in ("input_block", "downsamples", "bottleneck", "upsamples"):
        delattr(network, name)
    return network


def attention_unet(plan: NetworkPlan) -> nn.Module:
    """MONAI's AttentionUnet, with its batch norms."""
    from monai.networks.nets.attentionunet import AttentionUnet

    dims = plan.spatial_dims
    kernel = plan.kernels[0][:dims]
    network: nn.Module = AttentionUnet(
        **_common(plan),
        channels=plan.features,
        strides=[stride[:dims] for stride in plan.strides[1:]],
        kernel_size=kernel,
        up_kernel_size=kernel,
    )
    return network


def mednext(plan: NetworkPlan) -> nn.Module:
    """MONAI's MedNeXt with residual connections; the last of the encoder is its bottleneck."""
    from monai.networks.nets.mednext import MedNeXt

    assert isinstance(plan.options, MednextOptions)
    expansions = plan.options.expansions or (2,) * len(plan.features)
    *down, bottleneck = plan.encoder_counts
    network: nn.Module = MedNeXt(
        **_common(plan),
        init_filters=plan.features[0],
        encoder_expansion_ratio=expansions[:-1],
        bottleneck_expansion_ratio=expansions[-1],
        decoder_expansion_ratio=expansions[-2::-1],
        kernel_size=plan.kernels[0][0],
        deep_supervision=plan.deep_supervision,
        use_residual_connection=True,
        blocks_down=down,
        blocks_bottleneck=bottleneck,
        blocks_up=plan.decoder_counts[::-1],
    )
    return network


def swin_unetr(plan: NetworkPlan) -> nn.Module:
    """MONAI's SwinUNETR.

    Raises:
        MissingPackageError: einops is not installed.
    """
    require(plan.kind.needs, extra="transformers", feature="the network swin_unetr")
    from monai.networks.nets.swin_unetr import SwinUNETR

    assert isinstance(plan.options, SwinUnetrOptions)
    with _NumbersOnTheCpu():
        network: nn.Module = SwinUNETR(
            **_common(plan),
            depths=plan.options.depths,
            num_heads=plan.options.heads,
            window_size=plan.options.window,
            feature_size=plan.features[0],
        )
    return network


def unetr(plan: NetworkPlan) -> nn.Module:
    """MONAI's UNETR for the one size of tile that its options say.

    Raises:
        MissingPackageError: einops is not installed.
    """
    require(plan.kind.needs, extra="transformers", feature="the network unetr")
    from monai.networks.nets.unetr import UNETR

    assert isinstance(plan.options, UnetrOptions)
    network: nn.Module = UNETR(
        **_common(plan),
        img_size=plan.options.image_size[: plan.spatial_dims],
        feature_size=plan.features[0],
        hidden_size=plan.features[-1],
        mlp_dim=plan.options.mlp_features,
        num_heads=plan.options.heads,
    )
    # Never run without a second input, so that they would never learn.
    for module in list(network.modules()):
        if hasattr(module, "norm_cross_attn"):
            del module.norm_cross_attn
    return network


class _NumbersOnTheCpu(TorchFunctionMode):
    """MONAI reads numbers off a ``linspace``, which fails where modules are built on ``meta``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.linspace:
            given.setdefault("device", "cpu")
        return func(*args, **given)
