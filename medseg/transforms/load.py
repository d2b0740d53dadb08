"""Scans and masks into MONAI's MetaTensor: (C, I, J, K) with a RAS+ affine."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Transform

from medseg.core.geometry import Geometry
from medseg.core.scan import Scan
from medseg.io.formats import read_mask, read_scan
from medseg.transforms.preprocess import finite_voxels


def geometry_of(tensor: MetaTensor) -> Geometry:
    """The grid of a (C, I, J, K) MetaTensor."""
    a, b, c = (int(side) for side in tensor.shape[1:])
    return Geometry((a, b, c), np.asarray(tensor.affine, dtype=np.float64))


def with_geometry(data: torch.Tensor, geometry: Geometry) -> MetaTensor:
    """A MetaTensor with this grid's affine; no other metadata comes along."""
    return MetaTensor(data, affine=torch.from_numpy(geometry.affine_ras.copy()))


class LoadScan(Transform):
    """Path or :class:`Scan` to a float32 MetaTensor (C, I, J, K) in the file's own axis order.

    Raises:
        FileError: The file cannot be read, or holds NaN or infinity.
    """

    def __call__(self, data: str | Path | Scan) -> MetaTensor:
        scan = data if isinstance(data, Scan) else read_scan(data)
        return with_geometry(finite_voxels(scan), scan.geometry)


class LoadMask(Transform):
    """Path, or :class:`Scan` of whole numbers, to an int32 MetaTensor (1, I, J, K)."""

    def __call__(self, data: str | Path | Scan) -> MetaTensor:
        mask, scan = (data.voxels()[0], data) if isinstance(data, Scan) else read_mask(data)
        return with_geometry(torch.from_numpy(mask.astype(np.int32))[None], scan.geometry)


class LoadScand(MapTransform):
    """:class:`LoadScan` for the keys of a dictionary."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done, load = dict(data), LoadScan()
        for key in self.key_iterator(done):
            done[key] = load(done[key])
        return done


class LoadMaskd(MapTransform):
    """:class:`LoadMask` for the keys of a dictionary."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done, load = dict(data), LoadMask()
        for key in self.key_iterator(done):
            done[key] = load(done[key])
        return done
