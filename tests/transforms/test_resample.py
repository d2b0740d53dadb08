"""Resampling against torch's own interpolation and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, one_hot

from medseg.transforms.resample import (
    interpolate_rows,
    resample_image,
    resample_labels,
    sample_rows,
)
from tests.phantoms import lopsided_volume

SHAPES = [(31, 40, 33), (11, 50, 20), (48, 56, 40), (24, 28, 20), (7, 7, 7)]


def smooth_labels(shape: tuple[int, int, int], classes: int) -> np.ndarray:
    coarse = np.random.default_rng(3).integers(0, classes, [-(-side // 4) for side in shape])
    fine = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    return fine[: shape[0], : shape[1], : shape[2]].astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_equal_the_argmax_of_interpolated_one_hot(shape: tuple[int, int, int]) -> None:
    labels = smooth_labels((24, 28, 20), 5)
    hot = one_hot(torch.from_numpy(labels).long(), 5).permute(3, 0, 1, 2)[None].double()
    share = interpolate(hot, size=shape, mode="trilinear", align_corners=False)[0]
    best, second = share.topk(2, dim=0).values
    clear = (best - second > 1e-4).numpy()
    result = resample_labels(labels, shape)
    assert clear.mean() > 0.8
    assert result.shape == shape
    assert result.dtype == labels.dtype
    np.testing.assert_array_equal(result[clear], share.argmax(dim=0).numpy()[clear])


def test_labels_come_back_after_doubling_and_halving() -> None:
    labels = smooth_labels((12, 20, 9), 4)
    doubled = resample_labels(labels, (24, 40, 18))
    np.testing.assert_array_equal(resample_labels(doubled, labels.shape), labels)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_equal_the_whole(shape: tuple[int, int, int]) -> None:
    volume = torch.randn(3, 24, 28, 20, generator=torch.Generator().manual_seed(1))
    whole = resample_image(volume, shape)
    parts = [
        interpolate_rows(volume, slice(start, min(start + 5, shape[0])), shape)
        for start in range(0, shape[0], 5)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_ramp_stays_a_ramp_in_space() -> None:
    # Half-pixel centres: a linear function of position is reproduced, but for the edges.
    ramp = torch.arange(20.0).reshape(1, 20, 1, 1).expand(1, 20, 3, 2).contiguous()
    fine = resample_image(ramp, (60, 3, 2))[0, :, 0, 0]
    expected = (torch.arange(60.0) + 0.5) / 3 - 0.5
    torch.testing.assert_close(fine[2:-2], expected[2:-2], atol=1e-4, rtol=0)


def test_planes_at_uneven_places_lie_between_their_neighbours() -> None:
    volume = torch.from_numpy(lopsided_volume((7, 6, 5))[0].astype(np.float32))[None]
    rows, places = slice(2, 5), [0.0, 1.0, 1.75, 4.0]
    whole = sample_rows(volume, np.eye(4), (7, 6, 5), rows=rows, fill=None)
    planes = sample_rows(volume, np.eye(4), (7, 6, 4), rows=rows, fill=None, last=places)
    # Worked out by hand from the even planes.
    expected = torch.stack(
        [whole[..., 0], whole[..., 1], 0.25 * whole[..., 1] + 0.75 * whole[..., 2], whole[..., 4]],
        dim=-1,
    )
    torch.testing.assert_close(planes, expected, rtol=0, atol=1e-2)
