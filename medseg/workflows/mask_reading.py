"""The masks of a case from their files, prediction and reference on one grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import GeometryError
from medseg.core.geometry import Geometry
from medseg.core.label_scheme import LabelScheme
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
        ignore: Value of the reference's voxels that count nowhere; None where all count.
        regions: The labels are regions, which overlap: each has all voxels of its sources.
    """

    tolerance_mm: float
    labels: LabelSet | None
    lesions: Sequence[int] = ()
    organs: Mapping[str, int] = field(default_factory=dict)
    resample: bool = False
    ignore: int | None = None
    regions: bool = False

    @property
    def unites(self) -> bool:
        """Whether a label stands for other values in the references than its own."""
        return self.labels is not None and any(
            label.sources not in ((), (label.value,)) for label in self.labels.labels
        )


class TwoMasks(NamedTuple):
    """A prediction and its reference, as they are scored.

    Attributes:
        prediction: (I, J, K), on the reference's grid.
        reference: (I, J, K).
        scan: The grid of both.
        ignored: (I, J, K) bool, voxels that were emptied in both; None where there are none.
    """

    prediction: Array | Masks
    reference: Array | Masks
    scan: Scan
    ignored: NDArray[np.bool_] | None = None


def read_pair(pair: MaskPair, rules: Rules, reader: Reader = HERE) -> TwoMasks:
    """Prediction and reference (I, J, K) on one grid, and the reference's scan.

    Raises:
        FileError: A file is damaged, or no mask.
        GeometryError: They lie on different grids.
        LabelError: A mask has values that are no labels.
    """
    reference, scan = _read(pair.reference, rules, reader, is_reference=True)
    ignored = _ignored_in(reference, rules)
    reference = _without(_meant(reference, rules, predicted=False), ignored)
    if pair.prediction is None:
        return TwoMasks(LayeredMasks(scan.geometry.shape, {}), reference, scan, ignored)
    prediction, grid = _read(pair.prediction, rules, reader, is_reference=False)
    gap = grid.geometry.difference(scan.geometry)
    if gap is not None and not rules.resample:
        raise GeometryError(
            f"grid of {pair.prediction}", expected=f"that of {pair.reference}", got=gap,
            cure="Predict on that scan, or bring the masks to its grid with --resample nearest.",
        )  # fmt: skip
    if gap is not None:
        _LOG.info("case %s is brought to the grid of the reference: %s", pair.case, gap)
        prediction = _nearest_on_grid(prediction, grid.geometry, scan.geometry)
    prediction = _without(_meant(prediction, rules, predicted=True), ignored)
    return TwoMasks(prediction, reference, scan, ignored)


def _ignored_in(reference: Array | Masks, rules: Rules) -> NDArray[np.bool_] | None:
    if rules.ignore is None or not isinstance(reference, np.ndarray):
        return None
    found = np.asarray(reference == rules.ignore)
    return found if found.any() else None


def _meant(mask: Array | Masks, rules: Rules, *, predicted: bool) -> Array | Masks:
    """A label image in the values that are scored, or as layers where labels overlap."""
    if rules.labels is None or not isinstance(mask, np.ndarray):
        return mask
    if not rules.regions:
        unite = rules.unites and not predicted
        return rules.labels.to_values(rules.labels.to_classes(mask)) if unite else mask
    scheme = LabelScheme(rules.labels, regions=True, ignore=rules.ignore)
    top = max(int(mask.max(initial=0)), *rules.labels.values)
    table = scheme.layers_of(np.arange(top + 1), predicted=predicted)
    layers = ((value, table[:, n][mask]) for n, value in enumerate(rules.labels.values))
    return LayeredMasks.cut(mask.shape, layers)


def _without(masks: Array | Masks, ignored: NDArray[np.bool_] | None) -> Array | Masks:
    if ignored is None:
        return masks
    if isinstance(masks, np.ndarray):
        return np.where(ignored, 0, masks).astype(masks.dtype)
    assert isinstance(masks, LayeredMasks)
    return masks.without(ignored)


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
