"""What is looked at in a mask and its scan, as figures that can be compared between cases.

Sizes, places and directions are in mm along the patient's axes, so that neither the spacing
nor the orientation of a scan changes them. Logarithms stand where ratios count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.core.labels import Label, LabelSet
from medseg.core.plan import Plan
from medseg.postprocess.components import label_components
from medseg.postprocess.surfaces import Box, MeshOptions, label_boxes, mesh_of
from medseg.quality.thumbnail import body_box, percentiles

Array = NDArray[Any]
Figures = dict[str, float]
Place = tuple[float, float, float]

#: Percentiles of a scan's intensities; the first and the last are its range.
LEVELS = (1, 5, 25, 50, 75, 95, 99)
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_SAMPLES = 200_000
# A body that ends this near to the edge of the field of view may go on beyond it.
_RIM = 0.02
# Below this many mm2 a covariance is that of a flat or thin thing, whose ratios mean nothing.
_LEAST_MM2 = 1e-3


@dataclass(frozen=True)
class LabelLook:
    """One label of one mask.

    Attributes:
        figures: By name, those that can be had.
        centre_mm: RAS+.
        cut_at: Sides (R L A P S I) where it touches the edge of the scan.
        volume_ml: Of its voxels.
        parts: Connected regions (26 neighbours).
    """

    figures: Figures
    centre_mm: Place
    cut_at: str
    volume_ml: float
    parts: int


@dataclass(frozen=True)
class CaseLook:
    """What is seen in one case. Holds no name of it.

    Attributes:
        labels: By name, of those that the mask shows.
        scan: Figures of the scan by name; of its grid alone where there are no voxels.
        axis_codes: Of the scan.
        unknown: Names of labels that nobody looked for in this case.
    """

    labels: dict[str, LabelLook]
    scan: Figures = field(default_factory=dict)
    axis_codes: str = ""
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """How intensities are made comparable, by channel.

    Attributes:
        absolute: Whether they mean the same in every scan (CT, RGB); else they count as shares
            of the scan's own range.
    """

    absolute: tuple[bool, ...]

    @classmethod
    def of(cls, plan: Plan) -> Scale:
        """As the plan normalises its channels."""
        return cls(tuple(one.normalisation in ("ct", "rgb_01") for one in plan.channels))


def look_at_case(
    mask: Array,
    geometry: Geometry,
    labels: LabelSet,
    *,
    voxels: Array | None = None,
    scale: Scale | None = None,
) -> CaseLook:
    """Look at a mask and its scan.

    Args:
        mask: (I, J, K) integers; 0 is background.
        geometry: Its grid.
        labels: What is looked at.
        voxels: (C, I, J, K) intensities on the same grid; None leaves them out.
        scale: Of the channels; None counts all as relative.
    """
    return View(geometry, voxels, scale).look(mask, labels)


class View:
    """A scan to look at masks in; what is known of it alone is worked out once.

    Args:
        geometry: The grid of the masks.
        voxels: (C, I, J, K) intensities on it; None leaves them out.
        scale: Of the channels; None counts all as relative.
    """

    def __init__(
        self, geometry: Geometry, voxels: Array | None = None, scale: Scale | None = None
    ) -> None:
        self.geometry, self._scan = geometry, _grid_figures(geometry)
        self._channels: list[_Channel] = []
        self._body: NDArray[np.float64] | None = None
        if voxels is None:
            return
        voxels = _finite(voxels)
        levels = _levels(voxels)
        scale = scale or Scale((False,) * len(voxels))
        self._scan |= _intensity_figures(levels, scale)
        for number, (own, absolute) in enumerate(zip(levels, scale.absolute, strict=True)):
            if own[-1] > own[0]:
                low, span = (0.0, 1.0) if absolute else (own[0], own[-1] - own[0])
                self._channels.append(_Channel(number, voxels[number], float(low), float(span)))
        self._body = _body_mm(voxels, geometry)

    def look(self, mask: Array, labels: LabelSet) -> CaseLook:
        """Look at some labels of a mask (I, J, K)."""
        boxes = label_boxes(mask, labels.values)
        found = {}
        for label in labels.labels:
            if label.value in boxes:
                part = _Part(mask, self.geometry, label, boxes[label.value])
                found[label.name] = _look(part, self._channels, self._body)
        return CaseLook(found, self._scan, self.geometry.axis_codes)


@dataclass(frozen=True)
class _Channel:
    """A channel of a scan that shows something, with what counts as 0 and as 1."""

    number: int
    voxels: Array
    low: float
    span: float

    def scaled(self, values: Array) -> NDArray[np.float64]:
        return np.asarray((values.astype(np.float64) - self.low) / self.span)


class _Part:
    """One label in the box around it and one voxel more, as far as the scan goes."""

    def __init__(self, mask: Array, geometry: Geometry, label: Label, box: Box) -> None:
        sides = [
            slice(max(0, side.start - 1), min(size, side.stop + 1))
            for side, size in zip(box, geometry.shape, strict=True)
        ]
        self.box: Box = (sides[0], sides[1], sides[2])
        self.region = np.ascontiguousarray(mask[self.box] == label.value)
        self.geometry, self.label = geometry.cut(self.box), label
        self.cut_at = _cut_sides(geometry, box)


def _look(part: _Part, channels: Sequence[_Channel], body: NDArray[np.float64] | None) -> LabelLook:
    voxels = int(np.count_nonzero(part.region))
    volume_mm3 = voxels * part.geometry.voxel_volume_mm3
    centre_mm, spread_mm2 = _moments(part.region, part.geometry)
    components, count = label_components(part.region)
    largest = int(np.bincount(components.ravel())[1:].max())
    area_mm2 = mesh_of(part.region, part.geometry, part.label, options=MeshOptions()).area_mm2
    figures = {
        "volume": float(np.log(volume_mm3)),
        "sphericity": float(np.log(np.cbrt(36 * np.pi * volume_mm3**2) / area_mm2)),
        "parts": float(count),
        "stray share": 1.0 - largest / voxels,
    }
    figures |= _form(spread_mm2, volume_mm3)
    if body is not None:
        for axis, name in enumerate(("left to right", "back to front")):
            low, high = body[:, axis]
            if np.isfinite(low) and np.isfinite(high):
                figures[f"{name} place"] = float((centre_mm[axis] - low) / (high - low))
    for channel in channels:
        figures |= {f"{n} {channel.number}": v for n, v in _brightness(part, channel).items()}
    x, y, z = (float(one) for one in centre_mm)
    return LabelLook(figures, (x, y, z), part.cut_at, volume_mm3 / 1000.0, count)


def _moments(
    region: NDArray[np.bool_], geometry: Geometry
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre (3,) in RAS+ mm and covariance (3, 3) in mm2 of a region."""
    planes = {(a, b): region.sum(axis=3 - a - b, dtype=np.float64) for a, b in _PAIRS}
    total = planes[0, 1].sum()
    places = [np.arange(size, dtype=np.float64) for size in region.shape]
    lines = [planes[0, 1].sum(axis=1), planes[0, 1].sum(axis=0), planes[0, 2].sum(axis=0)]
    middle = np.array([p @ line / total for p, line in zip(places, lines, strict=True)])
    spread = np.empty((3, 3))
    for axis in range(3):
        # A voxel is as wide as it is: 1/12 is the variance of a uniform unit.
        spread[axis, axis] = (places[axis] - middle[axis]) ** 2 @ lines[axis] / total + 1 / 12
    for a, b in _PAIRS:
        shared = (places[a] - middle[a]) @ planes[a, b] @ (places[b] - middle[b]) / total
        spread[a, b] = spread[b, a] = shared
    steps = geometry.affine_ras[:3, :3]
    return steps @ middle + geometry.affine_ras[:3, 3], steps @ spread @ steps.T


_PAIRS = ((0, 1), (0, 2), (1, 2))


def _form(spread_mm2: NDArray[np.float64], volume_mm3: float) -> Figures:
    """How long, how flat, and how full beside the ellipsoid of the same moments."""
    small, middle, large = np.maximum(np.linalg.eigvalsh(spread_mm2), _LEAST_MM2)
    ellipsoid_mm3 = 4 / 3 * np.pi * 5**1.5 * np.sqrt(small * middle * large)
    return {
        "elongation": float(np.log(large / middle) / 2),
        "flatness": float(np.log(middle / small) / 2),
        "fullness": float(np.log(volume_mm3 / ellipsoid_mm3)),
    }


def _brightness(part: _Part, channel: _Channel) -> Figures:
    """Intensities inside, and what changes at the border: towards the outside, and at all."""
    crop = channel.voxels[part.box]
    inside = crop[part.region]
    values = channel.scaled(inside[:: max(1, inside.size // _SAMPLES)])
    low, high = percentiles(values, (10, 90))
    figures = {
        "mean": float(values.mean()), "spread": float(values.std()),
        "dark end": float(low), "bright end": float(high),
    }  # fmt: skip
    steps = _border_steps(crop, part.region)
    if steps.size:
        scaled = steps / channel.span
        figures |= {"contrast": float(scaled.mean()), "edge": float(np.abs(scaled).mean())}
    return figures


def _border_steps(crop: Array, region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Inside minus outside, over each voxel face of the border."""
    found = []
    for axis in range(3):
        turned, values = np.moveaxis(region, axis, 0), np.moveaxis(crop, axis, 0)
        where = turned[1:] != turned[:-1]
        sign = np.where(turned[1:][where], 1.0, -1.0)
        found.append(sign * (values[1:][where].astype(np.float64) - values[:-1][where]))
    steps = np.concatenate(found)
    return np.asarray(steps[:: max(1, steps.size // _SAMPLES)])


def _grid_figures(geometry: Geometry) -> Figures:
    turned = geometry.reoriented(geometry.orientation_to_ras())
    figures = {}
    for axis, name in enumerate(("left to right", "back to front", "down to up")):
        step = turned.spacing_mm[axis]
        figures[f"{name} spacing"] = float(np.log(step))
        figures[f"{name} field"] = float(np.log(step * turned.shape[axis]))
    return figures


def _levels(voxels: Array) -> list[NDArray[np.float64]]:
    """Percentiles of each channel; an odd step falls on other places of each row."""
    step = max(1, voxels[0].size // _SAMPLES) | 1
    # In the order of the memory: else the whole scan would be copied first.
    return [percentiles(one.ravel(order="K")[::step], LEVELS) for one in voxels]


def _intensity_figures(levels: Sequence[NDArray[np.float64]], scale: Scale) -> Figures:
    figures = {}
    for number, (own, absolute) in enumerate(zip(levels, scale.absolute, strict=True)):
        span = float(own[-1] - own[0])
        if not absolute and not span:
            continue  # a channel that is missing, say
        if not absolute:
            figures[f"range {number}"] = float(np.log(span))
        for share, value in zip(LEVELS, own if absolute else (own - own[0]) / span, strict=True):
            # The ends of a range are the same in every scan.
            if absolute or share not in (LEVELS[0], LEVELS[-1]):
                figures[f"intensity {number} p{share}"] = float(value)
    return figures


def _finite(voxels: Array) -> Array:
    if voxels.dtype.kind != "f" or np.isfinite(voxels).all():
        return voxels
    return np.asarray(np.nan_to_num(voxels, nan=0.0, posinf=0.0, neginf=0.0))


def _body_mm(voxels: Array, geometry: Geometry) -> NDArray[np.float64]:
    """(2, 2): where the body begins and ends along R and A; NaN where the scan cuts it.

    Only of scans whose axes run along the patient's, to some degrees.
    """
    turn = geometry.orientation_to_ras()
    turned = geometry.reoriented(turn)
    shares = body_box(turn.apply(voxels))
    ends = np.full((2, 2), np.nan)
    for axis in range(2):
        low, high = shares[:, axis]
        if _RIM < low < high < 1 - _RIM:
            start = turned.affine_ras[axis, 3]
            length = turned.affine_ras[axis, axis] * turned.shape[axis]
            ends[:, axis] = start + low * length, start + high * length
    return ends


def _cut_sides(geometry: Geometry, box: Box) -> str:
    """Where a box touches the edge of the grid; axes of one voxel do not count."""
    sides = ""
    for part, size, code in zip(box, geometry.shape, geometry.axis_codes, strict=True):
        if size > 1:
            sides += _OPPOSITE[code] * (part.start == 0) + code * (part.stop == size)
    return "".join(sorted(sides, key="RLAPSI".index))
