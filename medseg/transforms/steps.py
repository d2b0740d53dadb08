"""The steps of preprocessing as MONAI transforms, for training and for one's own Compose."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform, Transform

from medseg.core.errors import MedsegError
from medseg.core.label_scheme import LabelScheme
from medseg.core.labels import LabelSet
from medseg.core.plan import ChannelPlan, Plan, ResamplingPlan, Spacing, Triple
from medseg.transforms import preprocess
from medseg.transforms.load import LoadMaskd, LoadScand, geometry_of, with_geometry
from medseg.transforms.normalise import nonzero_box

_LINEAR = ResamplingPlan()


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
        return with_geometry(
            *preprocess.made_regular(data.as_tensor(), geometry, nearest=self.nearest)
        )


class Orient(Transform):
    """Exchange and flip axes to a plan's working axes; voxels are not resampled."""

    def __init__(self, kind: str = "ras", axis_order: Triple = (0, 1, 2)) -> None:
        self.kind, self.axis_order = kind, axis_order

    def __call__(self, data: MetaTensor) -> MetaTensor:
        return with_geometry(
            *preprocess.oriented(
                data.as_tensor(), geometry_of(data), kind=self.kind, axis_order=self.axis_order
            )
        )


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
        done = preprocess.normalised(data.as_tensor(), self.channels)
        return with_geometry(done, geometry_of(data))


class ResampleToSpacing(Transform):
    """Resample (C, I, J, K) to a spacing along its axes; None keeps an axis."""

    def __init__(self, spacing_mm: Spacing, *, resampling: ResamplingPlan = _LINEAR) -> None:
        self.spacing_mm, self.resampling = spacing_mm, resampling

    def __call__(self, data: MetaTensor) -> MetaTensor:
        return with_geometry(
            *preprocess.resampled(
                data.as_tensor(), geometry_of(data),
                spacing_mm=self.spacing_mm, resampling=self.resampling,
            )
        )  # fmt: skip


class ResampleMaskToSpacing(Transform):
    """The same for class indices (1, I, J, K), by a weighted vote of the neighbours."""

    def __init__(self, spacing_mm: Spacing, *, resampling: ResamplingPlan = _LINEAR) -> None:
        self.spacing_mm, self.resampling = spacing_mm, resampling

    def __call__(self, data: MetaTensor) -> MetaTensor:
        return with_geometry(
            *preprocess.resampled_mask(
                data.as_tensor(), geometry_of(data),
                spacing_mm=self.spacing_mm, resampling=self.resampling,
            )
        )  # fmt: skip


class ToClasses(Transform):
    """Mask values (1, I, J, K) to class indices 0..n of a label set, or a scheme's, int32."""

    def __init__(self, labels: LabelSet | LabelScheme) -> None:
        self.scheme = labels if isinstance(labels, LabelScheme) else LabelScheme(labels)

    def __call__(self, data: MetaTensor) -> MetaTensor:
        classes = self.scheme.to_indices(data.as_tensor().numpy()).astype("int32")
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
        steps += [LoadMaskd(["label"]), Eachd(["label"], ToClasses(plan.scheme))]
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
