"""From a scan to what the network sees: RAS+ axes, normalised, at the plan's spacing.

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
from medseg.core.plan import ChannelPlan, Plan, Spacing
from medseg.core.scan import Scan
from medseg.core.slices import SlicePlaces
from medseg.transforms.load import LoadMaskd, LoadScand, geometry_of, with_geometry
from medseg.transforms.resample import resample_image, resample_labels, sample_rows


@dataclass(frozen=True)
class RestoreRecord:
    """The way back from the network's grid to the scan's own.

    Attributes:
        original: The scan's grid.
        orientation: What turned it towards RAS+.
        oriented: The turned grid, same voxels.
        working: The grid that the network sees.
        slices: Where the classes are wanted along K of ``original``; None for its own planes.

    Where the scan's own grid is sheared (``not original.is_regular``), ``oriented`` is a
    turned cover of it at right angles, and voxels are interpolated both ways.
    """

    original: Geometry
    orientation: Orientation
    oriented: Geometry
    working: Geometry
    slices: SlicePlaces | None = None

    @classmethod
    def of(cls, original: Geometry, spacing_mm: Spacing) -> RestoreRecord:
        """Work out the grids that preprocessing at this spacing goes through."""
        regular = original if original.is_regular else original.regular_cover()
        orientation = regular.orientation_to_ras()
        oriented = regular.reoriented(orientation)
        working = oriented.with_shape(oriented.shape_at(spacing_mm))
        return cls(original, orientation, oriented, working)

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


class OrientToRAS(Transform):
    """Exchange and flip axes to the order closest to RAS+; voxels are not resampled."""

    def __call__(self, data: MetaTensor) -> MetaTensor:
        geometry = geometry_of(data)
        orientation = geometry.orientation_to_ras()
        turned = data.as_tensor().permute(0, *(axis + 1 for axis in orientation.axes))
        turned = turned.flip([axis + 1 for axis in range(3) if orientation.flips[axis]])
        return with_geometry(turned.contiguous(), geometry.reoriented(orientation))


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
        parts = [
            normalise(voxels, channel)
            for voxels, channel in zip(data.as_tensor(), self.channels, strict=True)
        ]
        return with_geometry(torch.stack(parts), geometry_of(data))


class ResampleToSpacing(Transform):
    """Linear resampling of (C, I, J, K) to a spacing along its axes; None keeps an axis."""

    def __init__(self, spacing_mm: Spacing) -> None:
        self.spacing_mm = spacing_mm

    def __call__(self, data: MetaTensor) -> MetaTensor:
        geometry = geometry_of(data)
        shape = geometry.shape_at(self.spacing_mm)
        return with_geometry(resample_image(data.as_tensor(), shape), geometry.with_shape(shape))


class ResampleMaskToSpacing(Transform):
    """The same for class indices (1, I, J, K), by a weighted vote of the neighbours."""

    def __init__(self, spacing_mm: Spacing) -> None:
        self.spacing_mm = spacing_mm

    def __call__(self, data: MetaTensor) -> MetaTensor:
        geometry = geometry_of(data)
        shape = geometry.shape_at(self.spacing_mm)
        labels = resample_labels(data.as_tensor()[0].numpy(), shape)
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


def normalise(voxels: Tensor, channel: ChannelPlan) -> Tensor:
    """Normalise one channel (I, J, K) float32.

    Source: the schemes of nnU-Net (Isensee et al., Nature Methods 18, 2021, online methods).
    """
    if channel.normalisation == "ct":
        assert channel.mean is not None
        assert channel.std is not None
        clipped = voxels.clamp(channel.clip_low, channel.clip_high)
        return (clipped - channel.mean) / max(channel.std, 1e-6)
    if channel.normalisation == "zscore":
        std, mean = torch.std_mean(voxels.double(), correction=0)
        return (voxels - mean.float()) / std.float().clamp(min=1e-6)
    inside = voxels != 0
    if not bool(inside.any()):
        return voxels.clone()
    std, mean = torch.std_mean(voxels[inside].double(), correction=0)
    return torch.where(inside, (voxels - mean.float()) / std.float().clamp(min=1e-6), voxels)


def preprocessing(plan: Plan, *, with_mask: bool = False) -> Compose:
    """The plan's steps for ``{"image": path or Scan}``, and ``"label"`` when asked for."""
    steps: list[Transform] = [
        LoadScand(["image"]),
        Eachd(["image"], MakeRegular()),
        Eachd(["image"], OrientToRAS()),
        # Before resampling, so that metal and other extremes are clipped before they spread.
        Eachd(["image"], NormaliseChannels(plan.channels)),
        Eachd(["image"], ResampleToSpacing(plan.spacing_mm)),
    ]
    if with_mask:
        steps += [
            LoadMaskd(["label"]),
            Eachd(["label"], ToClasses(plan.labels)),
            Eachd(["label"], MakeRegular(nearest=True)),
            Eachd(["label"], OrientToRAS()),
            Eachd(["label"], ResampleMaskToSpacing(plan.spacing_mm)),
        ]
    return Steps(steps)


def preprocess_scan(scan: Scan, plan: Plan) -> tuple[Tensor, RestoreRecord]:
    """Bring one scan to the network's grid.

    Returns:
        The tensor (C, I, J, K) float32 in RAS+ at the plan's spacing, and the way back.
    """
    image = preprocessing(plan)({"image": scan})["image"]
    return image.as_tensor(), RestoreRecord.of(scan.geometry, plan.spacing_mm)
