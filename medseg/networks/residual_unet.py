"""U-Net whose encoder is a residual network, in two and three dimensions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from medseg.core.plan import NetworkPlan
from medseg.networks.blocks import ConvNormAct, Sides, normalisation
from medseg.networks.encoder_decoder import EncoderDecoder


class Shortcut(nn.Module):
    """What is added to a block's output: the input, averaged over the stride, projected.

    The projection (1x1 convolution without bias, then norm) is there only where the number
    of channels changes.

    Source: variant D of He et al., "Bag of tricks", CVPR 2019.
    """

    def __init__(self, dims: int, channels_in: int, channels_out: int, *, stride: Sides) -> None:
        super().__init__()
        pool = nn.AvgPool2d if dims == 2 else nn.AvgPool3d
        kind = nn.Conv2d if dims == 2 else nn.Conv3d
        strided = any(step != 1 for step in stride)
        self.pool = pool(stride, stride) if strided else nn.Identity()  # type: ignore[arg-type]
        if channels_in == channels_out:
            self.projection: nn.Module = nn.Identity()
            self.norm: nn.Module = nn.Identity()
        else:
            self.projection = kind(channels_in, channels_out, 1, bias=False)
            self.norm = normalisation(dims, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.projection(self.pool(x)))
        return result


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut: (N, C, ...) to (N, channels_out, ... / stride)."""

    def __init__(
        self,
        dims: int,
        channels_in: int,
        channels_out: int,
        *,
        kernel: Sides,
        stride: Sides,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        wide: dict[str, Any] = {"kernel": kernel, "dilation": dilation}
        self.first = ConvNormAct(dims, channels_in, channels_out, stride=stride, **wide)
        self.second = ConvNormAct(dims, channels_out, channels_out, activated=False, **wide)
        self.shortcut = Shortcut(dims, channels_in, channels_out, stride=stride)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return result


def residual_encoder(plan: NetworkPlan) -> nn.ModuleList:
    """A stem and stages of residual blocks, ``plan.encoder_counts`` of them, finest first."""
    dims, channels = plan.spatial_dims, plan.features[0]
    stem = ConvNormAct(dims, plan.in_channels, channels, kernel=plan.kernels[0][:dims])
    down = nn.ModuleList()
    for level, (width, count) in enumerate(zip(plan.features, plan.encoder_counts, strict=True)):
        blocks: list[nn.Module] = [] if level else [stem]
        sizes: dict[str, Any] = {
            "kernel": plan.kernels[level][:dims],
            "dilation": plan.dilations[level],
        }
        for place in range(count):
            stride = plan.strides[level][:dims] if place == 0 else (1,) * dims
            blocks.append(ResidualBlock(dims, channels, width, stride=stride, **sizes))
            channels = width
        down.append(nn.Sequential(*blocks))
    return down


class ResidualUNet(EncoderDecoder):
    """Stem, stages of residual blocks down, the U-Net's decoder up.

    ``plan.encoder_counts`` counts blocks. Contract: that of :class:`EncoderDecoder`.

    Source: the residual encoder of Isensee et al., "nnU-Net Revisited", MICCAI 2024.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__(plan, residual_encoder(plan))
