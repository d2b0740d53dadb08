"""Parameters, arithmetic and memory against counts by hand."""

from __future__ import annotations

from math import prod

import pytest
import torch

from medseg.core.network_options import NETWORK_KINDS
from medseg.core.plan import NetworkPlan
from medseg.networks.build import build_network
from medseg.networks.cost import network_cost
from tests.models import small_plan
from tests.network_plans import small_network


def test_a_u_net_by_hand() -> None:
    # Stages of 4 and 8 channels, 3x3x3, one channel in, three classes out, 16 x 12 x 8 voxels.
    fine, coarse = 16 * 12 * 8, 8 * 6 * 4

    def conv(a: int, b: int, voxels: int, kernel: int = 27) -> int:
        return 2 * kernel * a * b * voxels

    expected = conv(1, 4, fine) + conv(4, 4, fine) + conv(4, 8, coarse) + conv(8, 8, coarse)
    # The transposed convolution gives each coarse voxel a block of 2 x 2 x 2.
    expected += conv(8, 4, coarse, kernel=8)
    expected += conv(8, 4, fine) + conv(4, 4, fine) + conv(4, 3, fine, kernel=1)
    cost = network_cost(small_plan().network, (16, 12, 8))
    assert cost.gflops * 1e9 == pytest.approx(expected, rel=1e-9)


def test_more_voxels_cost_in_proportion() -> None:
    plan = small_plan().network
    small, large = network_cost(plan, (16, 12, 8)), network_cost(plan, (32, 12, 24))
    assert large.parameters == small.parameters
    assert large.gflops == pytest.approx(6 * small.gflops)
    assert large.activation_bytes == pytest.approx(6 * small.activation_bytes, rel=0.01)


@pytest.mark.parametrize("name", list(NETWORK_KINDS))
def test_parameters_are_those_of_the_network(name: str) -> None:
    pytest.importorskip("einops")
    plan, patch = small_network(name, 3)
    cost = network_cost(plan, patch)
    network = build_network(plan)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.gflops > 0
    # At least the logits and the features before them; far less than all that is ever made.
    least = 4 * prod(patch) * (plan.classes + plan.features[0])
    assert least <= cost.activation_bytes < 200 * least


def test_memory_of_a_chain_by_hand() -> None:
    # Where the finest stage is widest by far: the skip, its features joined with those from
    # below (twice as many), what is made of them, and what the norm makes of that.
    plan = NetworkPlan.model_validate(
        small_plan().network.model_dump() | {"features": (64, 1), "deep_supervision": False}
    )
    voxels = 16 * 12 * 8
    cost = network_cost(plan, (16, 12, 8))
    assert 4 * 5 * 64 * voxels <= cost.activation_bytes <= 4 * 6.1 * 64 * voxels


def test_nothing_is_run_and_chance_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    plan, _ = small_network("residual_unet", 3)
    # A tile of 60 GB is described as quickly as a small one.
    assert network_cost(plan, (2000, 1200, 2800)).gflops > 1000
    assert torch.equal(before, torch.random.get_rng_state())
