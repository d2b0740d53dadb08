"""One form for networks from anywhere: tiles in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medseg.core.plan import NetworkPlan


class TileNetwork(nn.Module):
    """A network for 2D or 3D tensors as one for tiles.

    Contract: (N, C, I, J, K), with K = 1 for a 2D network, to logits (N, classes, I, J, K).
    In training mode with deep supervision a list, full resolution first.
    """

    def __init__(self, network: nn.Module, plan: NetworkPlan) -> None:
        super().__init__()
        self.network = network
        self.flat = plan.spatial_dims == 2

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        found: Tensor | Sequence[Tensor] = self.network(x.squeeze(-1) if self.flat else x)
        if isinstance(found, Tensor):
            return found.unsqueeze(-1) if self.flat else found
        return [y.unsqueeze(-1) if self.flat else y for y in found]
