"""Muon: momentum made orthogonal for kernels, AdamW for everything else.

In one step all directions of a kernel are changed alike, also those that rarely have a large
gradient; a network so learns as much in a third of the steps. Source: K. Jordan et al., "Muon:
an optimizer for hidden layers in neural networks", 2024; J. Bernstein and L. Newhouse, "Old
optimizer, new norm", 2024 (arXiv:2409.20325).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

# p(s) = a s + b s^3 + c s^5, taken five times, brings singular values from (0, 1] to about
# 0.7 to 1.2 (Jordan et al.).
_POLYNOMIAL, _ROUNDS = (3.4445, -4.7750, 2.0315), 5
# With fewer rows or columns there are no directions to even out.
_LEAST_SIDE = 8
_MIXING = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


class Muon(Optimizer):
    """Optimiser of kernels by Muon, of all other parameters by AdamW.

    A kernel (of a convolution or a linear layer that mixes channels) is seen as a matrix: its
    first axis against all others. It changes by ``lr * kernel_rate * sqrt(max(1, rows /
    columns))`` times the orthogonal matrix nearest to its Nesterov momentum.

    Args:
        network: Whose parameters.
        lr: Learning rate of AdamW.
        weight_decay: Of all parameters, decoupled.
        kernel_rate: Learning rate of kernels as a multiple of ``lr``.
        momentum: Of kernels.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        weight_decay: float = 0.0,
        kernel_rate: float = 10.0,
        momentum: float = 0.95,
    ) -> None:
        kernels = kernels_of(network)
        ours = {id(kernel) for kernel in kernels}
        others = [value for value in network.parameters() if id(value) not in ours]
        groups: list[dict[str, Any]] = []
        self._adamw = AdamW(others, lr=lr, weight_decay=weight_decay) if others else None
        if self._adamw is not None:
            groups.append({**self._adamw.param_groups[0], "orthogonal": False})
        if kernels:
            groups.append({"params": kernels, "orthogonal": True})
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.kernel_rate, self.momentum = kernel_rate, momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change all parameters that have a gradient.

        Args:
            closure: Not supported.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            if group["orthogonal"]:
                self._change_kernels(group)
            elif self._adamw is not None:
                # One state for both, since it is saved and loaded here.
                self._adamw.state, self._adamw.param_groups = self.state, [group]
                self._adamw.step()

    def _change_kernels(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for kernel in group["params"]:
            if kernel.grad is not None:
                alike[tuple(kernel.shape)].append(kernel)
        for shape, kernels in alike.items():
            # Kernels of one shape together: few large products instead of many small ones.
            found = orthogonal(torch.stack([self._direction(kernel) for kernel in kernels]))
            rows, columns = shape[0], kernels[0][0].numel()
            rate = group["lr"] * self.kernel_rate * max(1.0, rows / columns) ** 0.5
            for kernel, change in zip(kernels, found, strict=True):
                kernel.mul_(1 - group["lr"] * self.kernel_rate * group["weight_decay"])
                kernel.add_(change.view(shape), alpha=-rate)

    def _direction(self, kernel: Tensor) -> Tensor:
        """(rows, columns) the Nesterov momentum of a kernel."""
        assert kernel.grad is not None
        state = self.state[kernel]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(kernel)
        state["momentum"].lerp_(kernel.grad, 1 - self.momentum)
        return torch.lerp(kernel.grad, state["momentum"], self.momentum).flatten(1)


def kernels_of(network: nn.Module) -> list[Tensor]:
    """Weights of layers that mix many channels, in the order of the network's modules."""
    return [
        module.weight
        for module in network.modules()
        if isinstance(module, _MIXING)
        and getattr(module, "groups", 1) == 1
        and min(module.weight.shape[0], module.weight[0].numel()) >= _LEAST_SIDE
    ]


def orthogonal(matrices: Tensor) -> Tensor:
    """The orthogonal matrices nearest to (N, rows, columns), their singular values about 1.

    By five rounds of an odd polynomial (Newton-Schulz), without a decomposition. With X_0 the
    matrix and A_k = X_k X_k^T, each round is X_k+1 = (a + b A_k + c A_k^2) X_k: the factors are
    small squares, so the long matrix is needed at the begin and at the end alone. A matrix of
    zeros stays so.
    """
    flat = matrices.shape[1] > matrices.shape[2]
    found = matrices.transpose(1, 2) if flat else matrices
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    gram = found @ found.transpose(1, 2)
    a, b, c = _POLYNOMIAL
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    whole: Tensor = identity
    for _ in range(_ROUNDS):
        factor = a * identity + torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        whole = factor @ whole
        gram = factor @ gram @ factor
    found = torch.bmm(whole, found)
    return found.transpose(1, 2) if flat else found
