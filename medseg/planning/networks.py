"""Each network at a size: what its stages are, and the patch that it takes.

The planner finds a patch, strides and kernels for a U-Net. Here they become those of the
network that was asked for: some halve every axis at each stage, some have a fixed number of
stages, one takes a single size of patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from medseg.core.errors import SettingsError
from medseg.core.network_options import NETWORK_KINDS
from medseg.core.plan import NetworkPlan, Triple

Stages = tuple[Triple, ...]
# Steps at which DeepLab stops to get coarser: 16 as in its paper; organs in 3D are small.
_DEEPLAB_STEP = {2: 16, 3: 8}
_DEEPLAB_WIDEST_RATE = 18
# Width of pyramid and decoder in widths of the finest stage: 256 at 32, half of it in 3D,
# where the decoder would cost more than all else.
_DEEPLAB_WIDTHS = {2: 8, 3: 4}


@dataclass(frozen=True)
class Frame:
    """What a network has to fit, and a U-Net's stages for it.

    Attributes:
        spatial_dims: 2 or 3.
        in_channels: Of a tile.
        classes: Of the logits.
        width: Channels of the finest stage.
        widest: Most channels of any stage, where the network lets one choose.
        patch: (I, J, K) voxels.
        strides: Step into each stage, finest first.
        kernels: Of each stage.
    """

    spatial_dims: int
    in_channels: int
    classes: int
    width: int
    widest: int
    patch: Triple = (1, 1, 1)
    strides: Stages = ((1, 1, 1),)
    kernels: Stages = ((1, 1, 1),)

    @property
    def halving(self) -> Triple:
        """The step that halves each axis that the network has."""
        return (2, 2, 2) if self.spatial_dims == 3 else (2, 2, 1)

    def halved(self, stages: int, *, kernel: int | None = 3) -> Frame:
        """With stages that halve each axis, and a patch that is large enough for them.

        Args:
            stages: Their number.
            kernel: The side of each kernel; None takes the largest of each axis.
        """
        strides = ((1, 1, 1), *(self.halving,) * (stages - 1))
        sides = tuple(max(k[axis] for k in self.kernels) for axis in range(3))
        one = sides if kernel is None else (kernel,) * self.spatial_dims
        every = (*one, 1)[:3] if self.spatial_dims == 2 else one
        kernels = ((every[0], every[1], every[2]),) * stages
        return replace(self, strides=strides, kernels=kernels).rounded()

    def rounded(self) -> Frame:
        """With the patch rounded up to a multiple of all steps, and more than one of them long."""
        steps = [prod(stride[axis] for stride in self.strides) for axis in range(3)]
        sides = [-(-side // step) * step for side, step in zip(self.patch, steps, strict=True)]
        if sides == steps:
            # At one voxel a norm would have nothing to norm.
            longest = max(range(self.spatial_dims), key=lambda axis: self.patch[axis])
            sides[longest] *= 2
        return replace(self, patch=(sides[0], sides[1], sides[2]))


@dataclass(frozen=True)
class Shape:
    """What ``fit_network`` decides beside the frame: fields of the NetworkPlan."""

    frame: Frame
    features: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


def fit_network(name: str, frame: Frame) -> tuple[Triple, NetworkPlan]:
    """The patch and the plan of a network.

    Args:
        name: Of ``NETWORK_KINDS``.
        frame: What it has to fit.

    Raises:
        SettingsError: No network has that name.
    """
    if name not in NETWORK_KINDS:
        raise SettingsError(
            f"network '{name}'", expected=f"one of {', '.join(NETWORK_KINDS)}", got=name
        )
    shape = _SHAPES.get(name, _free)(frame)
    return shape.frame.patch, NetworkPlan(
        name=name,
        spatial_dims=2 if frame.spatial_dims == 2 else 3,
        in_channels=frame.in_channels,
        classes=frame.classes,
        features=shape.features,
        strides=shape.frame.strides,
        kernels=shape.frame.kernels,
        deep_supervision=NETWORK_KINDS[name].supervised,
        options=NETWORK_KINDS[name].options.model_validate(shape.options),
    )


def _doubling(frame: Frame, *, widest: int | None = None) -> tuple[int, ...]:
    widths = (frame.width * 2**level for level in range(len(frame.strides)))
    return tuple(min(widest or width, width) for width in widths)


def _free(frame: Frame) -> Shape:
    """Any stages: U-Nets."""
    return Shape(frame, _doubling(frame, widest=frame.widest))


def _fcn(frame: Frame) -> Shape:
    fused = {"fused_stages": min(3, len(frame.strides))}
    return Shape(frame, _doubling(frame, widest=frame.widest), fused)


def _deeplab(frame: Frame) -> Shape:
    """Coarser only down to a certain step; one more stage is dilated instead."""
    step, count = [1, 1, 1], 0
    for stride in frame.strides:
        step = [a * b for a, b in zip(step, stride, strict=True)]
        if max(step) > _DEEPLAB_STEP[frame.spatial_dims]:
            break
        count += 1
    strides, kernels = frame.strides[:count], frame.kernels[:count]
    if count < len(frame.strides) or count == 1:
        strides, kernels = (
            (*strides, (1, 1, 1)),
            (*kernels, frame.kernels[min(count, len(frame.kernels) - 1)]),
        )
    kept = replace(frame, strides=strides, kernels=kernels)
    sides = [frame.patch[axis] // prod(s[axis] for s in strides) for axis in range(3)]
    largest = max(1, min(_DEEPLAB_WIDEST_RATE, max(sides) // 2))
    rates = sorted({max(1, largest // 3), max(1, 2 * largest // 3), largest})
    options = {
        "rates": tuple(rates),
        "pyramid_features": min(256, _DEEPLAB_WIDTHS[frame.spatial_dims] * frame.width),
        "low_stage": 1 if len(strides) > 2 else 0,
        "low_features": max(4, min(48, 3 * frame.width // 2)),
    }
    return Shape(kept, _doubling(kept, widest=frame.widest), options)


def _dynunet(frame: Frame) -> Shape:
    missing = max(0, 3 - len(frame.strides))
    strides = frame.strides + ((1, 1, 1),) * missing
    kernels = frame.kernels + (frame.kernels[-1],) * missing
    longer = replace(frame, strides=strides, kernels=kernels)
    return Shape(longer, _doubling(longer, widest=frame.widest))


def _attention_unet(frame: Frame) -> Shape:
    sides = [max(kernel[axis] for kernel in frame.kernels) for axis in range(3)]
    kernel = (sides[0], sides[1], sides[2])
    alike = replace(frame, kernels=(kernel,) * len(frame.kernels))
    return Shape(alike, _doubling(alike, widest=frame.widest))


def _segresnet(frame: Frame) -> Shape:
    width = -(-frame.width // 8) * 8
    halved = replace(frame, width=width).halved(min(4, max(2, len(frame.strides))))
    return Shape(halved, _doubling(halved))


def _mednext(frame: Frame) -> Shape:
    halved = frame.halved(min(5, max(2, len(frame.strides))))
    return Shape(halved, _doubling(halved))


def _swin_unetr(frame: Frame) -> Shape:
    width = -(-frame.width // 12) * 12
    return Shape(frame.halved(6), (width, width, 2 * width, 4 * width, 8 * width, 16 * width))


def _unetr(frame: Frame) -> Shape:
    halved, width = frame.halved(5), frame.width
    hidden = min(768, 48 * width)
    heads = hidden // 64 if hidden % 64 == 0 else 12
    options = {"image_size": halved.patch, "mlp_features": 4 * hidden, "heads": heads}
    return Shape(halved, (width, 2 * width, 4 * width, 8 * width, hidden), options)


_SHAPES: dict[str, Callable[[Frame], Shape]] = {
    "fcn": _fcn,
    "deeplab": _deeplab,
    "dynunet": _dynunet,
    "attention_unet": _attention_unet,
    "segresnet": _segresnet,
    "mednext": _mednext,
    "swin_unetr": _swin_unetr,
    "unetr": _unetr,
}
