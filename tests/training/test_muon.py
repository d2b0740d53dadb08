"""Muon, against a decomposition, torch's own Muon and torch's AdamW."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from medseg.training.muon import Muon, kernels_of, orthogonal


@pytest.mark.parametrize("shape", [(3, 12, 40), (2, 40, 12), (1, 9, 9)])
def test_orthogonal_keeps_directions_and_evens_out_their_sizes(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * 30
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ orthogonal(matrices) @ right.mT
    sizes = torch.diagonal(inside, dim1=1, dim2=2)
    torch.testing.assert_close(inside, torch.diag_embed(sizes), atol=2e-4, rtol=0)
    assert sizes.min() > 0.3
    assert sizes.max() < 1.3


def test_nothing_stays_nothing() -> None:
    assert not orthogonal(torch.zeros(2, 8, 20)).any()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 8, 3)
        self.norm = nn.InstanceNorm3d(8, affine=True)
        self.apart = nn.Conv3d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose3d(8, 12, 2)
        self.line = nn.Linear(16, 10)
        self.head = nn.Conv3d(8, 3, 1)


def _with_gradients(seed: int) -> _Net:
    torch.manual_seed(seed)
    net = _Net()
    for value in net.parameters():
        value.grad = torch.randn_like(value)
    return net


def test_kernels_are_those_that_mix_channels() -> None:
    with torch.random.fork_rng([]):
        net = _Net()
    assert [id(kernel) for kernel in kernels_of(net)] == [
        id(layer.weight) for layer in (net.first, net.up, net.line)
    ]


def test_all_else_changes_as_with_adamw() -> None:
    with torch.random.fork_rng([]):
        ours = _with_gradients(2)
    theirs = copy.deepcopy(ours)
    for value, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.grad = None if value.grad is None else value.grad.clone()
    kernels = {id(kernel) for kernel in kernels_of(ours)}
    muon = Muon(ours, lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        muon.step()
        adamw.step()
    assert len(muon.param_groups) == 2
    for value, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(value, other) is (id(value) not in kernels)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon of its own")
@pytest.mark.parametrize("shape", [(24, 16), (10, 30)])
def test_a_matrix_changes_as_with_the_muon_of_torch(shape: tuple[int, int]) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        layer = nn.Linear(shape[1], shape[0], bias=False)
        gradients = [torch.randn(shape) for _ in range(4)]
    begin = layer.weight.detach().clone()
    other = begin.clone().requires_grad_()
    ours = Muon(layer, lr=0.002, weight_decay=0.5, kernel_rate=10.0)
    theirs = torch.optim.Muon([other], lr=0.02, weight_decay=0.5)
    for gradient in gradients:
        layer.weight.grad, other.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    change = other.detach() - begin
    # Theirs is computed in bf16.
    worst = (layer.weight.detach() - other.detach()).abs().max() / change.abs().max()
    assert worst < 0.03
