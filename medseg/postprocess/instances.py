"""Single bodies of a label: lesions, vertebrae, nuclei; found, numbered by position, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import GeometryError, LabelError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Figure, Measurements
from medseg.postprocess.calipers import feret_mm, flat_axis
from medseg.postprocess.components import Box, label_components
from medseg.postprocess.distances import distance_transform
from medseg.postprocess.measurements import cut_sides
from medseg.postprocess.surfaces import check_mask, label_boxes
from medseg.postprocess.watershed import split_at_necks

Split = Literal["watershed", "components"]
SPLITS: tuple[Split, ...] = ("watershed", "components")
# A neck that is less than this share of a voxel deep is one of the grid, not of the body.
_LEAST_DEPTH_VOXELS = 0.75
_MOST = 65535
_XYZ = ("x", "y", "z")


@dataclass(frozen=True)
class InstanceOptions:
    """How bodies are told apart.

    Attributes:
        split: ``"components"``: what hangs together is one; ``"watershed"``: and is cut at its
            necks, by the distance to its border.
        neck: A neck is cut where it is at most so wide, as a share of the lesser body's width.
        least: Smaller bodies are left out, after the split: mm3, or mm2 in flat images.
        connectivity: Neighbours that hang together, see ``components.label_components``.

    Raises:
        SettingsError: There is no such split, or a number is out of range.
    """

    split: Split = "watershed"
    neck: float = 0.85
    least: float = 0.0
    connectivity: int = 26

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise SettingsError("split", expected=" or ".join(SPLITS), got=repr(self.split))
        if not 0 < self.neck < 1:
            raise SettingsError("neck", expected="a share between 0 and 1", got=str(self.neck))
        if not 0 <= self.least < float("inf"):
            raise SettingsError("min-volume", expected="0 or more", got=str(self.least))


@dataclass(frozen=True)
class Instances:
    """Numbered bodies.

    Attributes:
        numbers: (I, J, K) uint8 or uint16, 0 where there is none.
        values: The label value of each, from number 1 on.
    """

    numbers: NDArray[Any]
    values: tuple[int, ...]


def find_instances(
    mask: NDArray[Any],
    geometry: Geometry,
    labels: LabelSet,
    options: InstanceOptions | None = None,
) -> Instances:
    """Number the bodies of labels.

    Numbers go through the labels in their order, and within a label by the centroid: from head
    to feet, of equally high ones from front to back, then from the patient's right to left. In
    a picture that is from top to bottom, then from left to right.

    Args:
        mask: (I, J, K) integers; 0 is background.
        geometry: Its grid.
        labels: Those wanted, in order.
        options: How; None for the usual.

    Raises:
        InputError: The mask is not (I, J, K) integers, or the connectivity is unknown.
        LabelError: There are more than 65535.
    """
    check_mask(mask, geometry)
    wanted = options or InstanceOptions()
    found = np.zeros(mask.shape, dtype=np.uint32)
    values = [0]
    for value, tight in label_boxes(mask, labels.values).items():
        box = _grown(tight)
        region = mask[box] == value
        parts, count = _bodies(region, geometry, wanted)
        found[box][region] = parts[region] + len(values) - 1
        values += [value] * count
    return _ordered(found, np.array(values), geometry, labels, least=wanted.least)


def _bodies(
    region: NDArray[np.bool_], geometry: Geometry, options: InstanceOptions
) -> tuple[NDArray[Any], int]:
    """The bodies of one label, in no order, and how many; background around is 0.

    Args:
        region: (I, J, K), with a margin of background except where the image ends: there a body
            counts as going on.
        geometry: Of the whole image.
        options: How.
    """
    if options.split == "components" or region.all():
        return label_components(region, options.connectivity)
    steps = geometry.spacing_mm
    away_mm = np.where(region, distance_transform(~region, steps), np.float32(0))
    wide = [step for step, side in zip(steps, geometry.shape, strict=True) if side > 1]
    depth = _LEAST_DEPTH_VOXELS * min(wide, default=1.0)
    split = split_at_necks(away_mm, steps, share=options.neck, depth=depth)
    return split, int(split.max())


def _ordered(
    found: NDArray[np.uint32],
    values: NDArray[np.intp],
    geometry: Geometry,
    labels: LabelSet,
    *,
    least: float,
) -> Instances:
    """Numbers by label and place, without what is too small."""
    facts = cc3d.statistics(found, no_slice_conversion=True)
    large = facts["voxel_counts"].astype(np.float64) * voxel_size(geometry)[0] >= least * (1 - 1e-9)
    kept = np.flatnonzero(large & (facts["voxel_counts"] > 0))
    kept = kept[kept > 0]
    if kept.size > _MOST:
        raise LabelError(
            "instances", expected=f"at most {_MOST}", got=str(kept.size),
            cure="Leave small ones out with --min-volume, or take fewer labels.",
        )  # fmt: skip
    affine = geometry.affine_ras
    # Rounded, so that a tie is one whatever the last bits are.
    places = np.round(facts["centroids"][kept] @ affine[:3, :3].T + affine[:3, 3], 3)
    rank = np.array([labels.values.index(int(value)) for value in values[kept]], dtype=np.intp)
    x, y, z = -places.T
    kept = kept[np.lexsort((x, y, z, rank))]
    numbers = np.zeros(values.size, dtype=np.uint8 if kept.size <= 255 else np.uint16)
    numbers[kept] = np.arange(1, kept.size + 1)
    return Instances(numbers[found], tuple(int(value) for value in values[kept]))


def _grown(box: Box) -> Box:
    a, b, c = (slice(max(0, side.start - 1), side.stop + 1) for side in box)
    return a, b, c


def voxel_size(geometry: Geometry) -> tuple[float, str]:
    """What a voxel counts, and the name of that column: mm3, of flat images mm2."""
    axis = flat_axis(geometry)
    if axis is None:
        return geometry.voxel_volume_mm3, "volume_mm3"
    first, second = np.delete(geometry.affine_ras[:3, :3], axis, axis=1).T
    return float(np.linalg.norm(np.cross(first, second))), "area_mm2"


def measure_instances(
    instances: Instances,
    geometry: Geometry,
    labels: LabelSet,
    *,
    voxels: NDArray[Any] | None = None,
    channels: Sequence[str] = (),
) -> Measurements:
    """Measure each body.

    ``touches_border`` names the sides of the image that it touches (R L A P S I; empty for
    none); diameters are those of :func:`medseg.postprocess.calipers.feret_mm`; the centroid is
    in RAS+ mm; ``mean`` leaves out what is no number.

    Args:
        instances: On this grid.
        geometry: The grid.
        labels: What their values mean.
        voxels: (C, I, J, K) intensities; None leaves them out.
        channels: Names of several channels, for the names of the columns.

    Raises:
        GeometryError: The voxels are not on the grid.
    """
    if voxels is not None and voxels.shape[1:] != instances.numbers.shape:
        raise GeometryError(
            "the scan", expected=f"the mask's shape {instances.numbers.shape}",
            got=str(voxels.shape[1:]),
        )  # fmt: skip
    means = _mean_columns(voxels, channels)
    size, unit = voxel_size(geometry)
    columns = (
        "number", "label", "value", "touches_border", "voxels", unit, "diameter_max_mm",
        "diameter_min_mm", *(f"centroid_{axis}_mm" for axis in _XYZ), *means,
    )  # fmt: skip
    names = dict(zip(labels.values, labels.names, strict=True))
    facts = cc3d.statistics(instances.numbers, no_slice_conversion=True)
    rows = []
    for number, value in enumerate(instances.values, start=1):
        sides = facts["bounding_boxes"][number].reshape(3, 2).tolist()
        a, b, c = (slice(start, end + 1) for start, end in sides)
        region = instances.numbers[a, b, c] == number
        count = int(facts["voxel_counts"][number])
        own = geometry.affine_ras @ [*facts["centroids"][number], 1.0]
        largest, least = feret_mm(region, geometry)
        figures: tuple[Figure, ...] = (
            number, names[value], value, cut_sides(geometry, (a, b, c)), count, count * size,
            largest, least, *(float(part) for part in own[:3]),
        )  # fmt: skip
        if voxels is not None:
            figures += tuple(_mean(channel[a, b, c][region]) for channel in voxels)
        rows.append(dict(zip(columns, figures, strict=True)))
    return Measurements(columns, tuple(rows))


def _mean_columns(voxels: NDArray[Any] | None, channels: Sequence[str]) -> tuple[str, ...]:
    if voxels is None or len(voxels) == 1:
        return () if voxels is None else ("mean",)
    names = channels if len(channels) == len(voxels) else [str(n) for n in range(len(voxels))]
    return tuple(f"mean_{name}" for name in names)


def _mean(values: NDArray[Any]) -> float | None:
    exact = values.astype(np.float64)
    finite = exact[np.isfinite(exact)]
    return float(finite.mean()) if finite.size else None
