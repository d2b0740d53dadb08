"""A scan as the house hands it on: geometry at once, voxels when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError, InputError
from medseg.core.geometry import Geometry
from medseg.core.slices import SlicePlaces

# Slabs hold about this many voxels, unless told otherwise: 16 MB of 16-bit numbers.
_SLAB_VOXELS = 1 << 23


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
        slices: Where its slices lie, where the scan came from DICOM (of the first channel).
        load_slabs: Reads parts of the voxels without the rest: for each (start, stop) along K
            it yields (C, I, J, stop - start). None where the file must be read as a whole.
        missing: Channels, by number, that there is no image of; they hold zeros, and are 0 to a
            network whatever it normalises by.
    """

    geometry: Geometry
    channels: tuple[str, ...]
    load: Callable[[], NDArray[Any]] = field(repr=False)
    modality: str = ""
    source: str = "scan"
    forms: NiftiForms | None = field(default=None, repr=False)
    slices: SlicePlaces | None = field(default=None, repr=False)
    load_slabs: Callable[[Sequence[tuple[int, int]]], Iterator[NDArray[Any]]] | None = field(
        default=None, repr=False
    )
    missing: tuple[int, ...] = ()

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

    def read_slab(self, start: int, stop: int) -> NDArray[Any]:
        """Read some slices alone: the same as ``voxels()[..., start:stop]``.

        Most formats hold only these in memory meanwhile; damage elsewhere in the file is
        then not seen. Packed files are unpacked up to ``stop``, so that many slabs are read
        faster with :meth:`slabs`.

        Args:
            start: The first slice along K.
            stop: One behind the last.

        Returns:
            (C, I, J, stop - start), of the number type of :meth:`voxels`.

        Raises:
            InputError: There are no such slices.
            FileError: As for :meth:`voxels`.
        """
        count = self.geometry.shape[2]
        if not 0 <= start < stop <= count:
            raise InputError(
                f"{self.source}: slices {start} to {stop}",
                expected=f"0 <= start < stop <= {count}",
                got=f"{start}, {stop}",
            )
        (slab,) = self._cut([(start, stop)])
        return slab

    def slabs(self, depth: int | None = None) -> Iterator[NDArray[Any]]:
        """Read all slices in order, some at a time, in one pass through the file.

        Args:
            depth: Slices at a time; None takes what makes about 16 MB of 16-bit voxels.

        Yields:
            (C, I, J, depth), the last with what is left.

        Raises:
            FileError: As for :meth:`voxels`.
        """
        across, down, count = self.geometry.shape
        depth = depth or max(1, _SLAB_VOXELS // (len(self.channels) * across * down))
        return self._cut([(at, min(count, at + depth)) for at in range(0, count, depth)])

    def _cut(self, cuts: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
        if self.load_slabs is None:
            whole = self.voxels()
            yield from (whole[..., start:stop] for start, stop in cuts)
            return
        head = (len(self.channels), *self.geometry.shape[:2])
        for (start, stop), array in zip(cuts, self.load_slabs(cuts), strict=True):
            expected = (*head, stop - start)
            if array.shape != expected:
                raise FileError(self.source, expected=f"voxels {expected}", got=str(array.shape))
            yield array

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
    def from_channels(cls, scans: Mapping[str, Scan | None], *, source: str = "scan") -> Scan:
        """Join scans of one channel each, on one grid, into one of several channels.

        Args:
            scans: By the names of the channels; None for one that there is no image of, which
                becomes zeros. At least one is there.
            source: What to call the scan in messages.

        Raises:
            GeometryError: Two of them lie on different grids.
        """
        there = {name: scan for name, scan in scans.items() if scan is not None}
        (first_name, first), *others = there.items()
        for name, scan in others:
            gap = first.geometry.difference(scan.geometry)
            if gap is not None:
                raise GeometryError(
                    source,
                    expected=f"channel '{name}' on the grid of '{first_name}'",
                    got=gap,
                    cure="Resample the channels to one grid first.",
                )
        several = [name for name, scan in there.items() if len(scan.channels) != 1]
        if several:
            raise FileError(source, expected="one channel per file", got=f"more in {several}")
        nothing = np.zeros(first.geometry.shape, dtype=np.uint8)
        empty = cls.from_array(nothing, first.geometry)
        parts = tuple(empty if scan is None else scan for scan in scans.values())

        def load_slabs(cuts: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
            for slabs in zip(*(part._cut(cuts) for part in parts), strict=True):
                yield np.concatenate(slabs)

        return cls(
            first.geometry,
            tuple(scans),
            lambda: np.concatenate([s.voxels() for s in parts]),
            modality=first.modality,
            source=source,
            forms=first.forms,
            slices=first.slices,
            load_slabs=load_slabs if all(part.load_slabs for part in parts) else None,
            missing=tuple(n for n, scan in enumerate(scans.values()) if scan is None),
        )
