"""The MONAI transform against SciPy, in MONAI's own Compose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy import ndimage

from medseg.core.errors import InputError
from medseg.postprocess.transforms import KeepLargestRegiond
from tests.phantoms import oblique_affine


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(5)
    mask = (rng.integers(1, 4, shape) * (rng.random(shape) < 0.35)).astype(np.int32)
    # One region of each label is the largest for sure.
    mask[:4, :3], mask[6:9, 4:8], mask[10:, 2:5] = 1, 2, 3
    return mask


@pytest.mark.parametrize("shape", [(13, 9, 6), (13, 9)])
def test_in_compose_equals_scipy(shape: tuple[int, ...]) -> None:
    mask = _mask(shape)
    expected = mask.copy()
    for value in (1, 3):
        regions, _ = ndimage.label(mask == value, np.ones((3,) * len(shape)))
        largest = np.argmax(np.bincount(regions[regions > 0]))
        expected[(regions > 0) & (regions != largest)] = 0
    cleaned = Compose([KeepLargestRegiond("pred", [1, 3])])({"pred": torch.from_numpy(mask[None])})
    np.testing.assert_array_equal(cleaned["pred"].numpy()[0], expected)
    assert not np.array_equal(mask, expected)


def test_type_and_metadata_stay() -> None:
    mask = _mask((13, 9, 6))[None]
    expected = KeepLargestRegiond(["m"], [1, 2, 3])({"m": mask})["m"]
    assert isinstance(expected, np.ndarray)
    affine = torch.from_numpy(oblique_affine())
    item = MetaTensor(torch.from_numpy(mask).to(torch.float32), affine=affine)
    cleaned = KeepLargestRegiond(["m"], [1, 2, 3])({"m": item})["m"]
    assert isinstance(cleaned, MetaTensor)
    assert cleaned.dtype == torch.float32
    assert torch.equal(cleaned.affine, affine)
    np.testing.assert_array_equal(cleaned.numpy(), expected)


def test_missing_key_and_bad_shape() -> None:
    data = {"m": np.zeros((1, 3, 3, 3), dtype=np.uint8)}
    with pytest.raises(KeyError):
        KeepLargestRegiond(["other"], [1])(data)
    assert KeepLargestRegiond(["other"], [1], allow_missing_keys=True)(data).keys() == data.keys()
    with pytest.raises(InputError, match=r"\(1, I, J, K\)"):
        KeepLargestRegiond(["m"], [1])({"m": np.zeros((2, 3, 3, 3), dtype=np.uint8)})
