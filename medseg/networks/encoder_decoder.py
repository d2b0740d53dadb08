"""What every U-shaped network shares: skips, the way up, heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.core.plan import NetworkPlan
from medseg.networks.blocks import convolution, initialise, stage, upsampling


class EncoderDecoder(nn.Module):
    """An encoder of any kind and the U-Net's decoder.

    Contract: the input is (N, C, I, J, K) with sides that are multiples of
    ``plan.divisor``; a 2D network takes (N, C, I, J, 1). In evaluation mode the output is
    (N, classes, I, J, K) logits. In training mode with deep supervision it is a list:
    full resolution first, then each coarser decoder stage but the coarsest.

    Args:
        plan: Sizes; ``features``, ``kernels`` and ``decoder_counts`` make the decoder.
        down: One module per encoder stage, finest first; the n-th gives ``features[n]``
            channels, after a step of ``strides[n]``.
    """

    def __init__(self, plan: NetworkPlan, down: nn.ModuleList) -> None:
        super().__init__()
        dims, features = plan.spatial_dims, plan.features
        self.flat = dims == 2
        self.deep_supervision = plan.deep_supervision
        self.down = down
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        self.heads = nn.ModuleList()
        for level in range(len(features) - 2, -1, -1):
            step = plan.strides[level + 1][:dims]
            self.up.append(upsampling(dims, features[level + 1], features[level], stride=step))
            self.merge.append(
                stage(
                    dims,
                    2 * features[level],
                    features[level],
                    kernel=plan.kernels[level][:dims],
                    stride=(1,) * dims,
                    count=plan.decoder_counts[level],
                )
            )
            # The coarsest decoder stage gets no head: at its size small organs are gone.
            supervised = plan.deep_supervision and 0 < level < max(1, len(features) - 2)
            if level == 0 or supervised:
                head = convolution(dims, features[level], plan.classes, kernel=(1,) * dims)
                self.heads.append(head)
            else:
                self.heads.append(nn.Identity())
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.flat:
            x = x.squeeze(-1)
        skips = []
        for step in self.down:
            x = step(x)
            skips.append(x)
        outputs = []
        for up, merge, head, skip in zip(
            self.up, self.merge, self.heads, reversed(skips[:-1]), strict=True
        ):
            x = merge(torch.cat((up(x), skip), dim=1))
            full = merge is self.merge[-1]
            if full or (self.training and not isinstance(head, nn.Identity)):
                outputs.append(head(x))
        outputs = [y.unsqueeze(-1) for y in reversed(outputs)] if self.flat else outputs[::-1]
        if self.training and self.deep_supervision:
            return outputs
        finest: Tensor = outputs[0]
        return finest
