"""Training with channels last in memory: the same results, in another order."""

from __future__ import annotations

import copy

import pytest
import torch

from medseg.networks.blocks import train_channels_last
from medseg.networks.build import build_network
from tests.models import small_plan
from tests.network_plans import small_network

_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.mark.parametrize("name", ["unet", "residual_unet", "fcn", "deeplab"])
@pytest.mark.parametrize("dims", [2, 3])
def test_results_and_gradients_stay(name: str, dims: int) -> None:
    plan, patch = small_network(name, dims)
    # In fp64 no rounding moves a value across the kink of an activation.
    usual = build_network(plan, seed=3).train().double()
    other = copy.deepcopy(usual)
    train_channels_last(other)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn((2, plan.in_channels, *patch), generator=generator, dtype=torch.float64)

    for network in (usual, other):
        found = network(image)
        found = found if isinstance(found, list) else [found]
        sum((one.square() * (1 + one)).mean() for one in found).backward()
    wanted, got = (
        [one.grad for one in network.parameters() if one.grad is not None]
        for network in (usual, other)
    )
    assert len(wanted) == len(got) == len(list(usual.parameters()))
    # A bias before a norm has no gradient but rounding.
    largest = max(float(one.abs().max()) for one in wanted)
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9 * largest)
    torch.testing.assert_close(other.eval()(image), usual.eval()(image), rtol=0, atol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_lie_side_by_side_from_norm_to_norm(dims: int) -> None:
    network = build_network(small_plan(dims=dims).network, seed=0).train()
    train_channels_last(network)
    seen = []
    for name, module in network.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(
                lambda module, given, found: seen.append(
                    [one.is_contiguous(memory_format=_FORMATS[dims]) for one in (given[0], found)]
                )
            )
    network(torch.randn(2, 1, 32, 16, 48 if dims == 3 else 1))
    assert len(seen) > 4
    # The first convolution sees one channel, which has no order.
    assert all(after for _, after in seen)
    assert all(before for before, _ in seen[1:])


def test_norm_follows_its_formula() -> None:
    network = build_network(small_plan().network, seed=0).train()
    train_channels_last(network)
    norm = next(module for name, module in network.named_modules() if name.endswith("norm"))
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    x = torch.randn(3, norm.num_features, 4, 6, 5) * 3 + 2
    mean = x.mean((2, 3, 4), keepdim=True)
    spread = (x - mean).square().mean((2, 3, 4), keepdim=True)
    shape = (1, -1, 1, 1, 1)
    wanted = (x - mean) / (spread + norm.eps).sqrt() * norm.weight.view(shape)
    torch.testing.assert_close(norm(x), wanted + norm.bias.view(shape), rtol=1e-4, atol=1e-5)
