"""Plain U-Net in two and three dimensions, with deep supervision."""

from __future__ import annotations

from torch import nn

from medseg.core.plan import NetworkPlan
from medseg.networks.blocks import stage
from medseg.networks.encoder_decoder import EncoderDecoder


def plain_encoder(plan: NetworkPlan) -> nn.ModuleList:
    """Stages of convolutions, ``plan.encoder_counts`` of them, finest first."""
    dims, channels = plan.spatial_dims, plan.in_channels
    down = nn.ModuleList()
    for width, stride, kernel, count in zip(
        plan.features, plan.strides, plan.kernels, plan.encoder_counts, strict=True
    ):
        sides, step = kernel[:dims], stride[:dims]
        down.append(stage(dims, channels, width, kernel=sides, stride=step, count=count))
        channels = width
    return down


class UNet(EncoderDecoder):
    """U-Net with strided convolutions down and transposed convolutions up.

    Contract: that of :class:`EncoderDecoder`.

    Source: Ronneberger et al., MICCAI 2015; Cicek et al., MICCAI 2016; norm, activation and
    deep supervision as in Isensee et al., Nature Methods 18, 2021.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__(plan, plain_encoder(plan))
