"""From a scan to what the network sees: the plan's axes, normalised, at its spacing.

Each step is a function of voxels (C, I, J, K) and their grid that gives both anew.
``preprocess_scan`` strings them together as the plan says, and returns, beside the tensor,
the record from which ``medseg.transforms.restore`` finds the way back. The same steps as MONAI
transforms are in ``medseg.transforms.steps``: loading MONAI takes longer than a small scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.core.errors import FileError, InputError
from medseg.core.geometry import Geometry, Orientation
from medseg.core.plan import ChannelPlan, Plan, ResamplingPlan, Spacing, Triple
from medseg.core.scan import Scan
from medseg.core.slices import SlicePlaces
from medseg.transforms.normalise import Box, filled_nonzero, nonzero_box, normalise
from medseg.transforms.resample import (
    axis_rules,
    resample_image,
    resample_labels,
    sample_rows,
    shape_for,
)

Placed = tuple[Tensor, Geometry]
_LINEAR = ResamplingPlan()
_AS_STORED = Orientation((0, 1, 2), (False, False, False))


@dataclass(frozen=True)
class RestoreRecord:
    """The way back from the network's grid to the scan's own.

    Attributes:
        original: The scan's grid.
        orientation: What turned it to the plan's axes.
        oriented: The turned grid, same voxels.
        working: The grid that the network sees.
        slices: Where the classes are wanted along K of ``original``; None for its own planes.
        crop: The box of ``oriented`` that ``working`` covers; outside it there is background.
            None for the whole.
        nearest: For each working axis, whether logits are restored by the nearest plane there
            instead of linearly.

    Where the scan's own grid is sheared (``not original.is_regular``), ``oriented`` is a
    turned cover of it at right angles, and voxels are interpolated both ways.
    """

    original: Geometry
    orientation: Orientation
    oriented: Geometry
    working: Geometry
    slices: SlicePlaces | None = None
    crop: Box | None = None
    nearest: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def of(cls, original: Geometry, spacing_mm: Spacing) -> RestoreRecord:
        """Work out the grids that preprocessing in RAS+ at this spacing goes through."""
        regular = original if original.is_regular else original.regular_cover()
        orientation = regular.orientation_to_ras()
        oriented = regular.reoriented(orientation)
        working = oriented.with_shape(oriented.shape_at(spacing_mm))
        return cls(original, orientation, oriented, working)

    @classmethod
    def for_plan(cls, original: Geometry, plan: Plan, *, crop: Box | None = None) -> RestoreRecord:
        """Work out the grids that the plan's preprocessing goes through.

        Args:
            original: The scan's grid.
            plan: Of the model.
            crop: The box that cropping found; None for the whole scan.
        """
        bent = plan.orientation == "ras" and not original.is_regular
        regular = original.regular_cover() if bent else original
        orientation = working_orientation(regular, plan.orientation, plan.axis_order)
        oriented = regular.reoriented(orientation)
        covered = oriented if crop is None else oriented.cut(crop)
        shape = shape_for(covered, plan.spacing_mm, rounding=plan.resampling.rounding)
        own = covered.spacing_mm
        wanted = [step or old for step, old in zip(plan.spacing_mm, own, strict=True)]
        rules = axis_rules(plan.resampling.logits, wanted, own, plan.resampling.anisotropy)
        a, b, c = (order == 0 for order in rules.orders)
        return cls(
            original, orientation, oriented, covered.with_shape(shape), crop=crop, nearest=(a, b, c)
        )

    def onto_cover(self) -> RestoreRecord:
        """The way back to the grid at right angles that covers a sheared scan."""
        return replace(self, original=self.oriented.reoriented(self.orientation.inverse()))

    def onto_slices(self, slices: SlicePlaces) -> RestoreRecord:
        """The way back to the original slices that were bridged to an even grid."""
        return self if slices.even else replace(self, slices=slices)

    @property
    def target(self) -> Geometry:
        """The grid of the result; where ``slices`` are uneven, the nearest that is even."""
        if self.slices is None:
            return self.original
        return self.slices.header_geometry(self.original)


def working_orientation(geometry: Geometry, kind: str, axis_order: Triple) -> Orientation:
    """What turns a grid to a plan's working axes.

    Args:
        geometry: A grid.
        kind: ``"ras"`` or ``"stored"``, as ``Plan.orientation``.
        axis_order: As ``Plan.axis_order``.
    """
    first = geometry.orientation_to_ras() if kind == "ras" else _AS_STORED
    a, b, c = (first.axes[axis] for axis in axis_order)
    d, e, f = (first.flips[axis] for axis in axis_order)
    return Orientation((a, b, c), (d, e, f))


def finite_voxels(scan: Scan) -> Tensor:
    """The voxels (C, I, J, K) as float32, in the file's own axis order.

    Raises:
        FileError: The file cannot be read, or holds NaN or infinity.
    """
    voxels = np.ascontiguousarray(scan.voxels(), dtype=np.float32)
    # A sum is NaN or infinite where any voxel is; looking at each only then is faster.
    if not np.isfinite(voxels.sum(dtype=np.float64)):
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise FileError(
            scan.source,
            expected="finite voxels",
            got=f"{bad} that are NaN or infinite",
            cure="Replace them with the background value and try again.",
        )
    return torch.from_numpy(voxels)


def made_regular(data: Tensor, geometry: Geometry, *, nearest: bool = False) -> Placed:
    """Resample sheared voxels onto a grid at right angles; leave others as they are.

    Args:
        data: (C, I, J, K).
        geometry: Their grid.
        nearest: For masks.
    """
    if geometry.is_regular:
        return data, geometry
    cover = geometry.regular_cover()
    voxels = data.float()
    # Outside the scan there is air: the least value of the scan, background in a mask.
    sampled = sample_rows(
        voxels,
        np.linalg.solve(geometry.affine_ras, cover.affine_ras),
        cover.shape,
        rows=slice(0, cover.shape[0]),
        nearest=nearest,
        fill=float(voxels.min()),
    )
    return sampled.to(data.dtype), cover


def oriented(
    data: Tensor, geometry: Geometry, *, kind: str = "ras", axis_order: Triple = (0, 1, 2)
) -> Placed:
    """Exchange and flip axes to a plan's working axes; voxels are not resampled."""
    orientation = working_orientation(geometry, kind, axis_order)
    turned = data.permute(0, *(axis + 1 for axis in orientation.axes))
    turned = turned.flip([axis + 1 for axis in range(3) if orientation.flips[axis]])
    return turned.contiguous(), geometry.reoriented(orientation)


def normalised(data: Tensor, channels: Sequence[ChannelPlan]) -> Tensor:
    """Normalise each channel of (C, I, J, K) as its plan says.

    Raises:
        InputError: There are more or fewer channels.
    """
    if data.shape[0] != len(channels):
        raise InputError(
            "channels",
            expected=f"{len(channels)} ({', '.join(channel.name for channel in channels)})",
            got=str(data.shape[0]),
            cure="Give one image per channel in the plan's order.",
        )
    masked = any(channel.normalisation == "zscore_mask" for channel in channels)
    region = filled_nonzero(data) if masked else None
    parts = [
        normalise(voxels, channel, region=region)
        for voxels, channel in zip(data, channels, strict=True)
    ]
    return torch.stack(parts)


def resampled(
    data: Tensor,
    geometry: Geometry,
    *,
    spacing_mm: Spacing,
    resampling: ResamplingPlan = _LINEAR,
) -> Placed:
    """Resample (C, I, J, K) to a spacing along its axes; None keeps an axis."""
    shape = shape_for(geometry, spacing_mm, rounding=resampling.rounding)
    own = geometry.spacing_mm
    wanted = [step or old for step, old in zip(spacing_mm, own, strict=True)]
    rules = axis_rules(resampling.image, own, wanted, resampling.anisotropy)
    return resample_image(data, shape, rules=rules), geometry.with_shape(shape)


def resampled_mask(
    data: Tensor,
    geometry: Geometry,
    *,
    spacing_mm: Spacing,
    resampling: ResamplingPlan = _LINEAR,
) -> Placed:
    """The same for class indices (1, I, J, K), by a weighted vote of the neighbours."""
    shape = shape_for(geometry, spacing_mm, rounding=resampling.rounding)
    own = geometry.spacing_mm
    wanted = [step or old for step, old in zip(spacing_mm, own, strict=True)]
    rules = axis_rules(resampling.labels, own, wanted, resampling.anisotropy)
    labels = resample_labels(data[0].numpy(), shape, rules=rules)
    return torch.from_numpy(labels)[None], geometry.with_shape(shape)


def preprocess_scan(scan: Scan, plan: Plan) -> tuple[Tensor, RestoreRecord]:
    """Bring one scan to the network's grid.

    Returns:
        The tensor (C, I, J, K) float32 on the plan's axes at its spacing, and the way back.

    Raises:
        FileError: The file cannot be read, or holds NaN or infinity.
        InputError: Its channels are not the plan's.
    """
    data, geometry, crop = finite_voxels(scan), scan.geometry, None
    if plan.orientation == "ras":
        data, geometry = made_regular(data, geometry)
    data, geometry = oriented(data, geometry, kind=plan.orientation, axis_order=plan.axis_order)
    if plan.crop == "nonzero":
        crop = nonzero_box(data)
        data, geometry = data[:, *crop], geometry.cut(crop)
    # Before resampling, so that metal and other extremes are clipped before they spread.
    data = normalised(data, plan.channels)
    data[list(scan.missing)] = 0
    data, geometry = resampled(
        data, geometry, spacing_mm=plan.spacing_mm, resampling=plan.resampling
    )
    return data, RestoreRecord.for_plan(scan.geometry, plan, crop=crop)


def preprocess_mask(
    mask: NDArray[Any], geometry: Geometry, plan: Plan, *, crop: Box | None = None
) -> tuple[NDArray[Any], Geometry]:
    """Bring a training mask to the network's grid.

    Args:
        mask: (I, J, K) values as in the file.
        geometry: Its grid.
        plan: Its label scheme, axes and spacing.
        crop: The box of the turned grid that its scan was cut to.

    Returns:
        (I, J, K) indices of the plan's label scheme, and their grid.
    """
    scheme = plan.scheme
    data = torch.from_numpy(scheme.to_indices(mask).astype(np.int32))[None]
    if plan.orientation == "ras":
        data, geometry = made_regular(data, geometry, nearest=True)
    data, geometry = oriented(data, geometry, kind=plan.orientation, axis_order=plan.axis_order)
    if crop is not None:
        data, geometry = data[:, *crop], geometry.cut(crop)
    data, geometry = resampled_mask(
        data, geometry, spacing_mm=plan.spacing_mm, resampling=plan.resampling
    )
    return data[0].numpy().astype(scheme.dtype), geometry
