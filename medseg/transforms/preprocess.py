"""From a scan to what the network sees: the plan's axes, normalised, at its spacing.

Each step is a MONAI transform that also runs alone. ``preprocessing`` strings them
together as the plan says; ``preprocess_scan`` runs it on one scan and returns, beside the
tensor, the record from which ``medseg.transforms.restore`` finds the way back.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform, Transform
from torch import Tensor

from medseg.core.errors import InputError, MedsegError
from medseg.core.geometry import Geometry, Orientation
from medseg.core.labels import LabelSet
from medseg.core.plan import ChannelPlan, Plan, ResamplingPlan, Spacing, Triple
from medseg.core.scan import Scan
from medseg.core.slices import SlicePlaces
from medseg.transforms.load import LoadMaskd, LoadScand, geometry_of, with_geometry
from medseg.transforms.normalise import Box, filled_nonzero, nonzero_box, normalise
from medseg.transforms.resample import (
    axis_rules,
    resample_image,
    resample_labels,
    sample_rows,
    shape_for,
)

_LINEAR = ResamplingPlan()


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


class MakeRegular(Transform):
    """Resample a sheared (C, I, J, K) onto a grid at right angles; leave others as they are.

    Args:
        nearest: For masks.
    """

    def __init__(self, *, nearest: bool = False) -> None:
        self.nearest = nearest

    def __call__(self, data: MetaTensor) -> MetaTensor:
        geometry = geometry_of(data)
        if geometry.is_regular:
            return data
        cover = geometry.regular_cover()
        voxels = data.as_tensor().float()
        # Outside the scan there is air: the least value of the scan, background in a mask.
        sampled = sample_rows(
            voxels,
            np.linalg.solve(geometry.affine_ras, cover.affine_ras),
            cover.shape,
            rows=slice(0, cover.shape[0]),
            nearest=self.nearest,
            fill=float(voxels.min()),
        )
        return with_geometry(sampled.to(data.dtype), cover)


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


_AS_STORED = Orientation((0, 1, 2), (False, False, False))


class Orient(Transform):
    """Exchange and flip axes to a plan's working axes; voxels are not resampled."""

    def __init__(self, kind: str = "ras", axis_order: Triple = (0, 1, 2)) -> None:
        self.kind, self.axis_order = kind, axis_order

    def __call__(self, data: MetaTensor) -> MetaTensor:
        geometry = geometry_of(data)
        orientation = working_orientation(geometry, self.kind, self.axis_order)
        turned = data.as_tensor().permute(0, *(axis + 1 for axis in orientation.axes))
        turned = turned.flip([axis + 1 for axis in range(3) if orientation.flips[axis]])
        return with_geometry(turned.contiguous(), geometry.reoriented(orientation))


class OrientToRAS(Orient):
    """Exchange and flip axes to the order closest to RAS+; voxels are not resampled."""

    def __init__(self) -> None:
        super().__init__()


class CropNonzerod(MapTransform):
    """Cut the keys of a dictionary to where any channel of ``source`` is not 0.

    The keys share one grid. The box is kept under ``"crop"``.
    """

    def __init__(self, keys: Sequence[str], source: str = "image") -> None:
        super().__init__(keys)
        self.source = source

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        box = nonzero_box(done[self.source].as_tensor())
        for key in self.key_iterator(done):
            geometry = geometry_of(done[key]).cut(box)
            done[key] = with_geometry(done[key].as_tensor()[:, *box], geometry)
        done["crop"] = box
        return done


class NormaliseChannels(Transform):
    """Normalise each channel of (C, I, J, K) as its plan says."""

    def __init__(self, channels: Sequence[ChannelPlan]) -> None:
        self.channels = tuple(channels)

    def __call__(self, data: MetaTensor) -> MetaTensor:
        if data.shape[0] != len(self.channels):
            raise InputError(
                "channels",
                expected=f"{len(self.channels)} "
                f"({', '.join(channel.name for channel in self.channels)})",
                got=str(data.shape[0]),
                cure="Give one image per channel in the plan's order.",
            )
        masked = any(channel.normalisation == "zscore_mask" for channel in self.channels)
        region = filled_nonzero(data.as_tensor()) if masked else None
        parts = [
            normalise(voxels, channel, region=region)
            for voxels, channel in zip(data.as_tensor(), self.channels, strict=True)
        ]
        return with_geometry(torch.stack(parts), geometry_of(data))


class ResampleToSpacing(Transform):
    """Resample (C, I, J, K) to a spacing along its axes; None keeps an axis."""

    def __init__(self, spacing_mm: Spacing, *, resampling: ResamplingPlan = _LINEAR) -> None:
        self.spacing_mm, self.resampling = spacing_mm, resampling

    def __call__(self, data: MetaTensor) -> MetaTensor:
        geometry = geometry_of(data)
        shape = shape_for(geometry, self.spacing_mm, rounding=self.resampling.rounding)
        own = geometry.spacing_mm
        wanted = [step or old for step, old in zip(self.spacing_mm, own, strict=True)]
        rules = axis_rules(self.resampling.image, own, wanted, self.resampling.anisotropy)
        done = resample_image(data.as_tensor(), shape, rules=rules)
        return with_geometry(done, geometry.with_shape(shape))


class ResampleMaskToSpacing(Transform):
    """The same for class indices (1, I, J, K), by a weighted vote of the neighbours."""

    def __init__(self, spacing_mm: Spacing, *, resampling: ResamplingPlan = _LINEAR) -> None:
        self.spacing_mm, self.resampling = spacing_mm, resampling

    def __call__(self, data: MetaTensor) -> MetaTensor:
        geometry = geometry_of(data)
        shape = shape_for(geometry, self.spacing_mm, rounding=self.resampling.rounding)
        own = geometry.spacing_mm
        wanted = [step or old for step, old in zip(self.spacing_mm, own, strict=True)]
        rules = axis_rules(self.resampling.labels, own, wanted, self.resampling.anisotropy)
        labels = resample_labels(data.as_tensor()[0].numpy(), shape, rules=rules)
        return with_geometry(torch.from_numpy(labels)[None], geometry.with_shape(shape))


class ToClasses(Transform):
    """Mask values (1, I, J, K) to class indices 0..n of a label set, int32."""

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels

    def __call__(self, data: MetaTensor) -> MetaTensor:
        classes = self.labels.to_classes(data.as_tensor().numpy()).astype("int32")
        return with_geometry(torch.from_numpy(classes), geometry_of(data))


class Steps(Compose):
    """MONAI's Compose that lets medseg's own errors through, where MONAI wraps every one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError as error:
            cause = error.__cause__
            while cause is not None and not isinstance(cause, MedsegError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None


class Eachd(MapTransform):
    """Run an array transform on the keys of a dictionary."""

    def __init__(self, keys: Sequence[str], transform: Transform) -> None:
        super().__init__(keys)
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            done[key] = self.transform(done[key])
        return done


def preprocessing(plan: Plan, *, with_mask: bool = False) -> Compose:
    """The plan's steps for ``{"image": path or Scan}``, and ``"label"`` when asked for."""
    keys = ["image", "label"] if with_mask else ["image"]
    steps: list[Transform] = [LoadScand(["image"])]
    if with_mask:
        steps += [LoadMaskd(["label"]), Eachd(["label"], ToClasses(plan.labels))]
    if plan.orientation == "ras":
        steps.append(Eachd(["image"], MakeRegular()))
        if with_mask:
            steps.append(Eachd(["label"], MakeRegular(nearest=True)))
    steps.append(Eachd(keys, Orient(plan.orientation, plan.axis_order)))
    if plan.crop == "nonzero":
        steps.append(CropNonzerod(keys))
    steps += [
        # Before resampling, so that metal and other extremes are clipped before they spread.
        Eachd(["image"], NormaliseChannels(plan.channels)),
        Eachd(["image"], ResampleToSpacing(plan.spacing_mm, resampling=plan.resampling)),
    ]
    if with_mask:
        mask_steps = ResampleMaskToSpacing(plan.spacing_mm, resampling=plan.resampling)
        steps.append(Eachd(["label"], mask_steps))
    return Steps(steps)


def preprocess_scan(scan: Scan, plan: Plan) -> tuple[Tensor, RestoreRecord]:
    """Bring one scan to the network's grid.

    Returns:
        The tensor (C, I, J, K) float32 on the plan's axes at its spacing, and the way back.
    """
    data = preprocessing(plan)({"image": scan})
    record = RestoreRecord.for_plan(scan.geometry, plan, crop=data.get("crop"))
    return data["image"].as_tensor(), record
