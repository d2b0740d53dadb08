"""The U-Net: shapes, gradients, size."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from medseg.core.errors import SettingsError
from medseg.core.plan import NetworkPlan
from medseg.networks.build import build_network
from medseg.networks.residual_unet import ResidualBlock
from tests.models import small_plan

DEEP = NetworkPlan(
    spatial_dims=3,
    in_channels=2,
    classes=4,
    features=(4, 6, 8, 10),
    strides=((1, 1, 1), (2, 2, 1), (2, 2, 2), (1, 2, 2)),
    kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
)


@pytest.mark.parametrize("name", ["unet", "residual_unet"])
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


def test_each_stage_has_its_own_count_of_convolutions() -> None:
    plan = DEEP.model_copy(
        update={"encoder_convolutions": (1, 2, 3, 1), "decoder_convolutions": (2, 1, 3)}
    )
    for name in ("unet", "residual_unet"):
        network = build_network(plan.model_copy(update={"name": name}), seed=0)
        stem = 1 if name == "residual_unet" else 0
        assert [len(step) for step in network.down] == [1 + stem, 2, 3, 1]  # type: ignore
        # The way up starts at the coarsest stage, the plan at the finest.
        assert [len(step) for step in network.merge] == [3, 1, 2]  # type: ignore


def test_a_residual_block_by_hand() -> None:
    # Convolutions that pass a channel on, norms that do nothing: the block is x + x at every
    # second voxel of the main path, and the mean of each 2x2x2 cube in the shortcut.
    block = ResidualBlock(3, 1, 1, kernel=(1, 1, 1), stride=(2, 2, 2)).eval()
    block.first.norm = block.second.norm = torch.nn.Identity()
    for convolution in (block.first.convolution, block.second.convolution):
        torch.nn.init.ones_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    x = torch.arange(4 * 2 * 6.0).reshape(1, 1, 4, 2, 6)
    mean = x.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).mean(dim=(-3, -2, -1))
    assert torch.allclose(block(x), x[..., ::2, ::2, ::2] + mean)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder_convolutions": (2, 2)}, "encoder_convolutions needs 4 entries"),
        ({"decoder_convolutions": (2, 2, 2, 2)}, "decoder_convolutions needs 3 entries"),
    ],
)
def test_counts_that_do_not_fit_the_stages(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        NetworkPlan.model_validate({**DEEP.model_dump(), **changes})
