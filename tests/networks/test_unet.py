"""The U-Net: shapes, gradients, size."""

from __future__ import annotations

import pytest
import torch

from medseg.core.errors import SettingsError
from medseg.core.plan import NetworkPlan
from medseg.networks.build import NETWORKS, build_network
from tests.models import small_plan

DEEP = NetworkPlan(
    spatial_dims=3,
    in_channels=2,
    classes=4,
    features=(4, 6, 8, 10),
    strides=((1, 1, 1), (2, 2, 1), (2, 2, 2), (1, 2, 2)),
    kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_contract(name: str) -> None:
    for plan, shape in (
        (DEEP.model_copy(update={"name": name}), (2, 2, 8, 16, 12)),
        (small_plan(dims=2).network.model_copy(update={"name": name}), (2, 1, 14, 10, 1)),
    ):
        network = build_network(plan, seed=1).train()
        outputs = network(torch.randn(shape))
        assert tuple(outputs[0].shape) == (2, plan.classes, *shape[2:])
        sum(output.square().mean() for output in outputs).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
        assert tuple(network.eval()(torch.randn(shape)).shape) == (2, plan.classes, *shape[2:])


def test_deep_supervision_halves_along_the_strides() -> None:
    outputs = build_network(DEEP, seed=0).train()(torch.randn(1, 2, 16, 16, 8))
    assert [tuple(o.shape[2:]) for o in outputs] == [(16, 16, 8), (8, 8, 8)]


def test_parameters_counted_by_hand() -> None:
    # Two stages of 4 and 8 channels, 3x3x3, one input channel, three classes.
    def block(a: int, b: int) -> int:
        return a * b * 27 + b + 2 * b

    expected = block(1, 4) + block(4, 4) + block(4, 8) + block(8, 8)
    expected += 8 * 4 * 8 + 4 + block(8, 4) + block(4, 4) + 4 * 3 + 3
    network = build_network(small_plan().network)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_seed_decides_the_weights_and_leaves_torchs_own_chance_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again = build_network(DEEP, seed=3), build_network(DEEP, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_unknown_name() -> None:
    with pytest.raises(SettingsError, match="expected one of"):
        build_network(DEEP.model_copy(update={"name": "vnet"}))
