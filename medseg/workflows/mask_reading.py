"""The masks of a case from their files, prediction and reference on one grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import GeometryError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.datasets.reading import HERE, Reader
from medseg.evaluation.masks import LayeredMasks, Masks
from medseg.workflows.pairing import MaskPair, MaskSource, OrganFiles

_LOG = logging.getLogger(__name__)

Array = NDArray[Any]


@dataclass(frozen=True)
class Rules:
    """What holds for all cases.

    Attributes:
        tolerance_mm: For NSD.
        labels: What is scored; None for the values that occur.
        lesions: Values of the labels whose lesions are scored.
        organs: Value that each organ's name has in the files, where there is a file for each.
        resample: Whether another grid is brought to the reference's.
    """

    tolerance_mm: float
    labels: LabelSet | None
    lesions: Sequence[int] = ()
    organs: Mapping[str, int] = field(default_factory=dict)
    resample: bool = False

    @property
    def unites(self) -> bool:
        """Whether a label stands for other values in the references than its own."""
        return self.labels is not None and any(
            label.sources not in ((), (label.value,)) for label in self.labels.labels
        )


def read_pair(
    pair: MaskPair, rules: Rules, reader: Reader = HERE
) -> tuple[Array | Masks, Array | Masks, Scan]:
    """Prediction and reference (I, J, K) on one grid, and the reference's scan.

    Raises:
        FileError: A file is damaged, or no mask.
        GeometryError: They lie on different grids.
        LabelError: A mask has values that are no labels.
    """
    reference, scan = _read(pair.reference, rules, reader, is_reference=True)
    if rules.unites and rules.labels is not None and isinstance(reference, np.ndarray):
        reference = rules.labels.to_values(rules.labels.to_classes(reference))
    if pair.prediction is None:
        return LayeredMasks(scan.geometry.shape, {}), reference, scan
    prediction, grid = _read(pair.prediction, rules, reader, is_reference=False)
    gap = grid.geometry.difference(scan.geometry)
    if gap is None:
        return prediction, reference, scan
    if not rules.resample:
        raise GeometryError(
            f"grid of {pair.prediction}", expected=f"that of {pair.reference}", got=gap,
            cure="Predict on that scan, or bring the masks to its grid with --resample nearest.",
        )  # fmt: skip
    _LOG.info("case %s is brought to the grid of the reference: %s", pair.case, gap)
    return _nearest_on_grid(prediction, grid.geometry, scan.geometry), reference, scan


def _read(
    source: MaskSource, rules: Rules, reader: Reader, *, is_reference: bool
) -> tuple[Array | Masks, Scan]:
    if isinstance(source, OrganFiles):
        return _read_organs(source, rules, reader, is_reference=is_reference)
    # Structures of DICOM masks are known by their names; their numbers mean nothing.
    return reader.mask(source, labels=None if rules.unites else rules.labels)


def _read_organs(
    source: OrganFiles, rules: Rules, reader: Reader, *, is_reference: bool
) -> tuple[LayeredMasks, Scan]:
    layers, first = LayeredMasks((), {}), None
    for name, path in source.files.items():
        values = _values_of(name, rules, is_reference=is_reference)
        if first is not None and not values:
            continue
        mask, scan = reader.mask(path)
        if first is None:
            layers, first = LayeredMasks(scan.geometry.shape, {}), scan
        gap = scan.geometry.difference(first.geometry)
        if gap is not None:
            raise GeometryError(
                f"grid of {path}", expected="that of the other organs of the case", got=gap
            )
        for value in values:
            layers = layers.with_mask(value, mask)
    assert first is not None  # a folder without files is no case
    return layers, first


def _values_of(name: str, rules: Rules, *, is_reference: bool) -> tuple[int, ...]:
    """What is painted where the organ of this name is."""
    if rules.labels is None:
        return ()
    if rules.unites and is_reference:
        value = rules.organs.get(name.casefold())
        return tuple(label.value for label in rules.labels.labels if value in label.sources)
    names = zip(rules.labels.names, rules.labels.values, strict=True)
    return tuple(value for known, value in names if known.casefold() == name.casefold())


def _nearest_on_grid(
    masks: Array | Masks, grid: Geometry, target: Geometry
) -> NDArray[Any] | LayeredMasks:
    """Masks brought to another grid: each voxel takes the value of the nearest, 0 outside."""
    if isinstance(masks, np.ndarray):
        return _nearest_image(masks, grid, target)
    whole = tuple(slice(0, size) for size in masks.shape)
    moved = LayeredMasks(target.shape, {})
    for value in masks.values:
        image = _nearest_image(masks.crop(value, whole), grid, target)
        moved = moved.with_mask(value, image)
    return moved


def _nearest_image(mask: NDArray[Any], grid: Geometry, target: Geometry) -> NDArray[Any]:
    matrix = np.linalg.solve(grid.affine_ras, target.affine_ras)
    result = np.zeros(target.shape, dtype=mask.dtype)
    _, j, k = np.ogrid[tuple(slice(0, size) for size in (1, *target.shape[1:]))]
    for i in range(target.shape[0]):
        places = [
            # Half a voxel is rounded to one side everywhere, whatever the last bits are.
            np.floor(row[0] * i + row[1] * j + row[2] * k + row[3] + 0.5 + 1e-6).astype(np.intp)[0]
            for row in matrix[:3]
        ]
        inside = np.ones(target.shape[1:], dtype=np.bool_)
        for place, size in zip(places, mask.shape, strict=True):
            inside &= (place >= 0) & (place < size)
        result[i][inside] = mask[tuple(place[inside] for place in places)]
    return result
