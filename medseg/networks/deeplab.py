"""DeepLabV3+ in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from medseg.core.network_options import DeeplabOptions
from medseg.core.plan import NetworkPlan
from medseg.networks.blocks import (
    ConvNormAct,
    Sides,
    convolution,
    enlarged,
    initialise,
    normalisation,
)
from medseg.networks.residual_unet import residual_encoder


class AtrousPyramid(nn.Module):
    """Looks at features at several scales at once: (N, C, ...) to (N, channels_out, ...).

    A 1x1 convolution, one dilated convolution per rate, and the mean over the tile, joined
    by a 1x1 convolution. The mean has no norm (it is one voxel, which instance norm would
    take to 0), and its part of the last convolution is added afterwards, which is the same
    as joining it and needs no copy of it for each voxel.

    Source: Chen et al., "Rethinking Atrous Convolution", arXiv:1706.05587.
    """

    def __init__(
        self,
        dims: int,
        channels_in: int,
        channels_out: int,
        *,
        rates: Sequence[int],
        kernel: Sides,
    ) -> None:
        super().__init__()
        one = (1,) * dims
        self.axes = tuple(range(2, 2 + dims))
        self.branches = nn.ModuleList(
            [ConvNormAct(dims, channels_in, channels_out, kernel=one)]
            + [
                ConvNormAct(dims, channels_in, channels_out, kernel=kernel, dilation=rate)
                for rate in rates
            ]
        )
        self.mean = convolution(dims, channels_in, channels_out, kernel=one)
        self.activation = nn.LeakyReLU(0.01)
        joined = len(self.branches) * channels_out
        self.from_branches = convolution(dims, joined, channels_out, kernel=one)
        self.from_mean = convolution(dims, channels_out, channels_out, kernel=one)
        self.norm = normalisation(dims, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([branch(x) for branch in self.branches], dim=1)
        mean = self.activation(self.mean(x.mean(self.axes, keepdim=True)))
        joined = self.from_branches(seen) + self.from_mean(mean)
        result: Tensor = self.activation(self.norm(joined))
        return result


class DeepLab(nn.Module):
    """Residual stages, an atrous pyramid over the last, and a decoder that sees an early one.

    Contract: (N, C, I, J[, K]) with sides that are multiples of ``plan.divisor`` to logits
    (N, classes, I, J[, K]).

    Stages that take no step are dilated (``plan.dilations``), so that features keep their
    size from there on. Convolutions are not depth-wise separable.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        options = plan.options
        assert isinstance(options, DeeplabOptions)
        dims, width, low = plan.spatial_dims, options.pyramid_features, options.low_stage
        kernel, one = plan.kernels[-1][:dims], (1,) * dims
        self.down = residual_encoder(plan)
        self.low = low
        self.pyramid = AtrousPyramid(
            dims, plan.features[-1], width, rates=options.rates, kernel=kernel
        )
        self.narrow = ConvNormAct(dims, plan.features[low], options.low_features, kernel=one)
        joined = width + options.low_features
        near = plan.kernels[low][:dims]
        self.decoder = nn.Sequential(
            ConvNormAct(dims, joined, width, kernel=near),
            ConvNormAct(dims, width, width, kernel=near),
            convolution(dims, width, plan.classes, kernel=one),
        )
        steps = [stride[:dims] for stride in plan.strides]
        self.to_low = tuple(prod(s[axis] for s in steps[low + 1 :]) for axis in range(dims))
        self.to_full = tuple(prod(s[axis] for s in steps[: low + 1]) for axis in range(dims))
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        early = x
        for level, step in enumerate(self.down):
            x = step(x)
            early = x if level == self.low else early
        coarse = enlarged(self.pyramid(x), self.to_low)
        logits = self.decoder(torch.cat((coarse, self.narrow(early)), dim=1))
        return enlarged(logits, self.to_full)
