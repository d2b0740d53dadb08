"""Read a case, whatever its layout: channels joined, masks of single organs painted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import DatasetError, GeometryError
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.datasets.dataset import Case
from medseg.io.formats import read_mask, read_scan
from medseg.io.guarded import GuardedReader


class _Here:
    """Reads in this process."""

    def scan(self, path: Path, *, series: str | None = None) -> Scan:
        return read_scan(path, series=series)

    def mask(
        self, path: Path, *, image: Path | None = None, labels: LabelSet | None = None
    ) -> tuple[NDArray[Any], Scan]:
        return read_mask(path, image=image, labels=labels)


#: What reads the files of a case: in this process, or with the worker of a GuardedReader.
Reader = _Here | GuardedReader
HERE = _Here()


def read_case_image(case: Case, reader: Reader = HERE) -> Scan:
    """The scan of a case, its channels in order; voxels (C, I, J, K) when they are asked for.

    A channel that the case has not is zeros, and the scan says so (``Scan.missing``).

    Raises:
        FileError: A file is missing or damaged, or one of several holds more than one channel.
        GeometryError: The channels lie on different grids.
        InputError: Several DICOM series could be meant.
    """
    wanted = case.series or ("",) * len(case.images)
    found = [
        reader.scan(path, series=series or None)
        for path, series in zip(case.images, wanted, strict=True)
    ]
    if len(found) == 1 and not case.missing:
        return found[0]
    parts: list[Scan | None] = list(found)
    for number in case.missing:
        parts.insert(number, None)
    named = {str(number): scan for number, scan in enumerate(parts)}
    return Scan.from_channels(named, source=f"case {case.id}")


def read_case_mask(case: Case, reader: Reader = HERE) -> tuple[NDArray[Any], Scan]:
    """The mask of a case: values (I, J, K), and the scan that holds its grid.

    Masks of single organs are painted in the order of ``case.organs``; a DICOM segmentation
    or structure set is painted on the grid of the case's image.

    Raises:
        DatasetError: The case has no mask.
        FileError: A file is missing or damaged.
        GeometryError: The masks of two organs lie on different grids.
        LabelError: A value is negative or not whole.
    """
    if case.label is not None:
        return reader.mask(case.label, image=case.images[0], labels=case.structures)
    if not case.organs:
        raise DatasetError(
            f"case {case.id}",
            expected="a label file",
            got="none",
            cure="Add its mask, or take the case out.",
        )
    return _painted(case, reader)


def _painted(case: Case, reader: Reader) -> tuple[NDArray[Any], Scan]:
    image = case.images[0]
    first_mask, grid = reader.mask(case.organs[0].path, image=image)
    top = max(organ.value for organ in case.organs)
    painted = np.zeros(first_mask.shape, dtype=np.uint8 if top <= 255 else np.uint16)
    for number, organ in enumerate(case.organs):
        mask, scan = (first_mask, grid) if number == 0 else reader.mask(organ.path, image=image)
        gap = grid.geometry.difference(scan.geometry)
        if gap is not None:
            raise GeometryError(
                f"case {case.id}, {organ.path}",
                expected=f"the grid of {case.organs[0].path.name}",
                got=gap,
                cure="Resample the masks to one grid.",
            )
        painted[mask != 0] = organ.value
    combined = Scan.from_array(painted, grid.geometry, source=f"case {case.id}")
    return painted, replace(combined, forms=grid.forms)
