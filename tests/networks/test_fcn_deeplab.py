"""FCN and DeepLabV3+: their pieces by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from medseg.networks.blocks import ConvNormAct, convolution, enlarged
from medseg.networks.build import build_network
from medseg.networks.deeplab import AtrousPyramid, DeepLab
from medseg.networks.fcn import FCN
from tests.network_plans import small_network


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_dilated_convolution_is_one_with_holes(dilation: int) -> None:
    layer = convolution(3, 1, 1, kernel=(3, 1, 3), dilation=dilation)
    assert isinstance(layer, nn.Conv3d)
    x = torch.randn(1, 1, 9, 5, 8)
    kernel = np.zeros((2 * dilation + 1, 1, 2 * dilation + 1))
    kernel[::dilation, :, ::dilation] = layer.weight.detach().numpy()[0, 0]
    with torch.no_grad():
        found = (layer(x) - layer.bias).numpy()[0, 0]
    expected = ndimage.correlate(x.numpy()[0, 0].astype(float), kernel, mode="constant")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_enlarging_by_hand() -> None:
    # Two voxels become four, at a quarter and three quarters of each.
    x = torch.tensor([0.0, 2.0]).reshape(1, 1, 2, 1, 1)
    assert enlarged(x, (2, 1, 1)).flatten().tolist() == [0.0, 0.5, 1.5, 2.0]
    assert enlarged(x, (1, 1, 1)) is x


@pytest.mark.parametrize("dims", [2, 3])
def test_fcn_adds_the_scores_of_its_coarsest_stages(dims: int) -> None:
    plan, patch = small_network("fcn", dims, options={"fused_stages": 2})
    network = build_network(plan, seed=0).eval().network
    assert isinstance(network, FCN)
    x = torch.randn(1, 2, *patch[:dims])
    with torch.inference_mode():
        middle = network.down[1](network.down[0](x))
        coarse = network.down[2](middle)
        last, between = plan.strides[2][:dims], plan.strides[1][:dims]
        total = network.scores[0](middle) + enlarged(network.scores[1](coarse), last)
        torch.testing.assert_close(network(x), enlarged(total, between))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_pyramid_joins_its_branches_and_the_mean(dims: int) -> None:
    pyramid = AtrousPyramid(dims, 3, 4, rates=(1, 2), kernel=(3,) * dims).eval()
    x = torch.randn(2, 3, 6, 5, 7)[..., 0] if dims == 2 else torch.randn(2, 3, 6, 5, 7)
    weight = torch.cat([pyramid.from_branches.weight, pyramid.from_mean.weight], dim=1)
    bias = pyramid.from_branches.bias + pyramid.from_mean.bias  # type: ignore[operator]
    with torch.inference_mode():
        mean = pyramid.activation(pyramid.mean(x.mean(pyramid.axes, keepdim=True)))
        parts = [branch(x) for branch in pyramid.branches] + [mean.expand(2, 4, *x.shape[2:])]
        joined = torch.einsum("nc...,oc->no...", torch.cat(parts, dim=1), weight.flatten(1))
        joined = joined + bias.reshape(1, -1, *(1,) * dims)
        torch.testing.assert_close(pyramid(x), pyramid.activation(pyramid.norm(joined)))


def test_deeplab_keeps_its_size_where_it_takes_no_step() -> None:
    plan, patch = small_network("deeplab", 3)
    assert plan.strides[2] == (1, 1, 1)
    assert plan.dilations == (1, 1, 2)
    assert plan.divisor == (2, 2, 2)
    network = build_network(plan, seed=0).network
    assert isinstance(network, DeepLab)
    x = torch.randn(1, 2, *patch)
    shapes = []
    for step in network.down:
        x = step(x)
        shapes.append(tuple(x.shape[2:]))
    assert shapes == [(20, 12, 28), (10, 6, 14), (10, 6, 14)]
    dilated = [m.convolution.dilation for m in network.down[2].modules() if _is_block(m)]
    assert set(dilated) == {(2, 2, 2)}


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, ConvNormAct)
