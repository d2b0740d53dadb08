"""Norms with exact sums: against torch in double precision, and through OpenVINO."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from medseg.inference.careful_norm import CarefulNorm, with_careful_norms
from medseg.inference.openvino_backend import import_openvino


def half_flat(*shape: int) -> torch.Tensor:
    """Noise with a half of one value, as a scan with much air."""
    voxels = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    voxels[:, :, : shape[2] // 2] = 2.7183
    return voxels


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_equals_the_norm_of_torch(dims: int, affine: bool) -> None:
    kind = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
    norm = kind(5, affine=affine, eps=1e-3)
    if affine:
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.uniform_(norm.bias, -2, 2)
    voxels = half_flat(2, 5, 9, 14, 11)[..., : 11 if dims == 3 else 1]
    voxels = voxels if dims == 3 else voxels[..., 0]
    wanted = copy.deepcopy(norm).double()(voxels.double())
    torch.testing.assert_close(CarefulNorm(norm)(voxels).double(), wanted, rtol=1e-5, atol=1e-5)


def test_the_network_itself_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Sequential(nn.InstanceNorm3d(4, affine=True)))
    changed = with_careful_norms(network)
    assert isinstance(changed[1][0], CarefulNorm)
    assert isinstance(network[1][0], nn.InstanceNorm3d)


@pytest.mark.filterwarnings("ignore")  # the tracer warns developers
def test_openvino_keeps_its_digits_where_half_a_tile_is_flat() -> None:
    ov = import_openvino()
    norm = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True)).eval()
    voxels = half_flat(1, 1, 96, 80, 64)
    with torch.no_grad():
        wanted = copy.deepcopy(norm).double()(voxels.double())
        off = []
        for network in (norm, with_careful_norms(norm)):
            traced = torch.jit.trace(network, voxels, check_trace=False)
            model = ov.convert_model(traced, example_input=voxels)
            found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            off.append(float((torch.from_numpy(found([voxels.numpy()])[0]) - wanted).abs().max()))
    assert off[1] < 2e-5
    assert off[1] < off[0] / 4, "its own norm is as exact by now: this module can go"
