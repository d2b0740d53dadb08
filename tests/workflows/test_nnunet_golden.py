"""Models that nnU-Net trained on phantoms give in medseg the masks that nnU-Net gave.

The models, phantoms and masks in ``tests/golden/nnunet`` were made with nnunetv2 2.8.1 by
``benchmarks/peers/train_nnunet.py`` and ``benchmarks/peers/golden.py``: one of each kind.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from medseg.workflows.api import load_model

_GOLDEN = Path(__file__).parents[1] / "golden" / "nnunet"

# Of each kind: its labels' values, and what it is there for.
KINDS = {
    "anisotropic": (1, 2),  # CT normalisation, thick slices resampled by themselves
    "regions": (1, 2, 3),  # overlapping regions, painted in order
    "plane": (1, 2),  # 2d, two folds
    "residual": (1, 2),  # ResidualEncoderUNet, turned to RAS by its reader
    "cascade": (1, 2),  # 3d_lowres, whose labels 3d_cascade_fullres sees
    "channels": (1, 2),  # two channels, z-score inside a mask, crop to non-zero
    "old_format": (1, 2, 3),  # plans with UNet_class_name
    "transposed": (1, 2),  # ignore label, other axis order, torch resampling, two mirror axes
}


def expected_of(kind: str) -> NDArray[np.generic]:
    """nnU-Net's mask (I, J, K)."""
    return np.asarray(nib.load(_GOLDEN / kind / "expected.nii.gz").dataobj)


def predicted(kind: str) -> NDArray[np.generic]:
    """medseg's mask (I, J, K), straight from nnU-Net's folder."""
    model = load_model(sorted((_GOLDEN / kind).glob("*__*__*"))[0], "cpu", backend="torch")
    images = sorted((_GOLDEN / kind).glob("case_*.nii.gz"))
    names = [channel.name for channel in model.plan.channels]
    source = images[0] if len(images) == 1 else dict(zip(names, images, strict=True))
    return model.predict(source).labels


@pytest.mark.parametrize("kind", KINDS)
def test_masks_agree_with_nnunet(kind: str) -> None:
    ours, theirs = predicted(kind), expected_of(kind)

    assert ours.shape == theirs.shape
    assert set(np.unique(theirs)) == {0, *KINDS[kind]}
    for value in KINDS[kind]:
        one, other = ours == value, theirs == value
        assert 2.0 * (one & other).sum() / (one.sum() + other.sum()) >= 0.999
    near = binary_dilation((ours > 0) | (theirs > 0), iterations=3)
    assert (ours == theirs)[near].mean() >= 0.995
