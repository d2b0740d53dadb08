"""Fully convolutional network in two and three dimensions."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from medseg.core.network_options import FcnOptions
from medseg.core.plan import NetworkPlan
from medseg.networks.blocks import convolution, enlarged, initialise
from medseg.networks.unet import plain_encoder


class FCN(nn.Module):
    """Stages of convolutions; the coarsest are scored, and the scores added up.

    Contract: (N, C, I, J[, K]) with sides that are multiples of ``plan.divisor`` to logits
    (N, classes, I, J[, K]).

    With three fused stages it is the FCN-8s of the paper where the coarsest of them has a
    stride of 32. Scores are enlarged by linear interpolation, with which the paper's
    transposed convolutions begin; the stages are those of the plain U-Net.

    Source: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic
    Segmentation", CVPR 2015.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        assert isinstance(plan.options, FcnOptions)
        dims = plan.spatial_dims
        self.down = plain_encoder(plan)
        self.first = len(plan.features) - plan.options.fused_stages
        self.scores = nn.ModuleList(
            convolution(dims, width, plan.classes, kernel=(1,) * dims)
            for width in plan.features[self.first :]
        )
        steps = [stride[:dims] for stride in plan.strides]
        self.steps = steps[self.first + 1 :]
        before = steps[: self.first + 1]
        self.last_step = tuple(prod(step[axis] for step in before) for axis in range(dims))
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        stages = []
        for step in self.down:
            x = step(x)
            stages.append(x)
        scores = [score(y) for score, y in zip(self.scores, stages[self.first :], strict=True)]
        total: Tensor = scores[-1]
        for finer, factors in zip(scores[-2::-1], self.steps[::-1], strict=True):
            total = finer + enlarged(total, factors)
        return enlarged(total, self.last_step)
