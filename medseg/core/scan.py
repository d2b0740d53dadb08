"""A scan as the house hands it on: geometry at once, voxels when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError
from medseg.core.geometry import Geometry


@dataclass(frozen=True)
class NiftiForms:
    """The placement fields of a NIfTI header, raw, so that a mask can repeat them bit for bit.

    Attributes:
        version: 1 or 2.
        fields: Raw header values by their NIfTI names (``pixdim``, ``qform_code``,
            ``quatern_b`` ..., ``sform_code``, ``srow_x`` ..., ``xyzt_units``).
        grid_shape: The spatial shape as stored, (I, J) or (I, J, K).
    """

    version: int
    fields: dict[str, tuple[float, ...]]
    grid_shape: tuple[int, ...]


@dataclass(frozen=True)
class Scan:
    """One scan, or one label image.

    Attributes:
        geometry: The grid.
        channels: A name per channel; a label image has one.
        load: Reads the voxels as (C, I, J, K); called each time that they are asked for.
        modality: ``"CT"``, ``"MR"``, ... where it is known, else "".
        source: What to call this scan in messages (a path as the user gave it).
        forms: The NIfTI header's placement fields, where the scan came from NIfTI.
    """

    geometry: Geometry
    channels: tuple[str, ...]
    load: Callable[[], NDArray[Any]] = field(repr=False)
    modality: str = ""
    source: str = "scan"
    forms: NiftiForms | None = field(default=None, repr=False)

    def voxels(self) -> NDArray[Any]:
        """Read the voxels, (C, I, J, K), in the file's own number type where it has one.

        Raises:
            FileError: The file ends early, or does not hold what its header promised.
        """
        array = self.load()
        expected = (len(self.channels), *self.geometry.shape)
        if array.shape != expected:
            raise FileError(self.source, expected=f"voxels {expected}", got=str(array.shape))
        return array

    @classmethod
    def from_array(
        cls, voxels: NDArray[Any], geometry: Geometry, *, source: str = "array", modality: str = ""
    ) -> Scan:
        """Wrap voxels (I, J, K) or (C, I, J, K) that are already in memory."""
        array = np.asarray(voxels)
        if array.shape == geometry.shape:
            array = array[None]
        names = tuple(str(number) for number in range(array.shape[0]))
        return cls(geometry, names, lambda: array, modality=modality, source=source)

    @classmethod
    def from_channels(cls, scans: Mapping[str, Scan], *, source: str = "scan") -> Scan:
        """Join scans of one channel each, on one grid, into one of several channels.

        Raises:
            GeometryError: Two of them lie on different grids.
        """
        (first_name, first), *others = scans.items()
        for name, scan in others:
            gap = first.geometry.difference(scan.geometry)
            if gap is not None:
                raise GeometryError(
                    source,
                    expected=f"channel '{name}' on the grid of '{first_name}'",
                    got=gap,
                    cure="Resample the channels to one grid first.",
                )
        several = [name for name, scan in scans.items() if len(scan.channels) != 1]
        if several:
            raise FileError(source, expected="one channel per file", got=f"more in {several}")
        parts = tuple(scans.values())
        return cls(
            first.geometry,
            tuple(scans),
            lambda: np.concatenate([s.voxels() for s in parts]),
            modality=first.modality,
            source=source,
            forms=first.forms,
        )
