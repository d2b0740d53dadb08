"""Networks at the sizes that their authors gave them.

A preset fixes the width and the blocks of each stage. Those of the residual U-Net also say
how much memory of a GPU the training may take: their authors count the numbers in all feature
maps of one patch, shrink the patch until the count fits, and give what is left to the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from medseg.core.errors import DatasetError, SettingsError
from medseg.core.network_options import NETWORK_KINDS
from medseg.core.optional import require
from medseg.core.plan import NetworkPlan, Triple
from medseg.planning.networks import Frame, fit_network
from medseg.planning.topology import patch_and_strides

# The patch that the search starts from, where the scans are that large: a side of 2048 or 256.
_MOST_VOXELS = {2: 2048**2, 3: 256**3}
_WIDEST = {2: 512, 3: 320}
_REFERENCE_BATCH = {2: 12, 3: 2}
_LEAST_BATCH = 2
_SHRINK = 0.95
_LEAST_VOXELS = 4**3


@dataclass(frozen=True)
class Preset:
    """A network at a given size.

    Attributes:
        network: Its name in the plan.
        encoder: Blocks of each encoder stage, finest first; the last holds for all below.
        decoder: Of each decoder stage, likewise.
        width: Channels of the finest stage.
        memory_gb: Of the GPU that it was made for; 0 where the device decides.
        values: Most numbers in the feature maps of one patch, in 2D and 3D.
        covered: Most of the training set that one batch may hold, as a share.
        options: Of the network.
    """

    network: str
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    width: int = 32
    memory_gb: int = 0
    values: tuple[int, int] = (0, 0)
    covered: float = 1.0
    options: tuple[tuple[str, tuple[int, ...]], ...] = ()


def _residual(memory_gb: int, values: tuple[int, int], covered: float) -> Preset:
    return Preset(
        "residual_unet", (1, 3, 4, 6), (1,), memory_gb=memory_gb, values=values, covered=covered
    )


def _mednext(blocks: tuple[int, ...], expansions: tuple[int, ...]) -> Preset:
    return Preset("mednext", blocks, blocks[:-1], options=(("expansions", expansions),))


# Source: the planners of nnU-Net v2 (Isensee et al., nnU-Net Revisited, MICCAI 2024) and
# Roy et al., MedNeXt, MICCAI 2023, table 1.
PRESETS: dict[str, Preset] = {
    "residual_unet_m": _residual(8, (135_000_000, 680_000_000), 0.05),
    "residual_unet_l": _residual(24, (380_000_000, 2_100_000_000), 1.0),
    "residual_unet_xl": _residual(40, (560_000_000, 3_600_000_000), 1.0),
    "mednext_s": _mednext((2, 2, 2, 2, 2), (2, 2, 2, 2, 2)),
    "mednext_b": _mednext((2, 2, 2, 2, 2), (2, 3, 4, 4, 4)),
    "mednext_m": _mednext((3, 4, 4, 4, 4), (2, 3, 4, 4, 4)),
    "mednext_l": _mednext((3, 4, 8, 8, 8), (3, 4, 8, 8, 8)),
}


@dataclass(frozen=True)
class Fitted:
    """A network with the patch and batch that go with it; ``reason`` says why, where a preset did.

    Attributes:
        patch: (I, J, K) voxels.
        network: Its plan.
        batch_size: Patches per step; None leaves it to the device.
        reason: For ``Plan.reasons``; "" without a preset.
    """

    patch: Triple
    network: NetworkPlan
    batch_size: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Ground:
    """The grid that patches are cut from.

    Attributes:
        shape: Typical scan on the working grid.
        spacing_mm: Of the working grid.
        patch_voxels: Most voxels of a patch, as the device allows.
        cases: Training cases.
    """

    shape: Triple
    spacing_mm: tuple[float, float, float]
    patch_voxels: int
    cases: int


def check_network(name: str) -> None:
    """Refuse a name that is neither a network nor a preset, or that cannot be had here.

    Raises:
        SettingsError: With the names that there are.
        MissingPackageError: The network needs a package that is not installed.
    """
    known = (*NETWORK_KINDS, *PRESETS)
    if name not in known:
        raise SettingsError(f"network '{name}'", expected=f"one of {', '.join(known)}", got=name)
    kind = NETWORK_KINDS[PRESETS[name].network if name in PRESETS else name]
    if kind.needs:
        require(kind.needs, extra="transformers", feature=f"the network {name}")


def fit(name: str, ground: Ground, draft: Frame) -> Fitted:
    """Find patch, stages and batch of a network or a preset.

    Args:
        name: Of ``NETWORK_KINDS`` or ``PRESETS``.
        ground: What patches are cut from.
        draft: Dimensions, channels and widths; its patch and stages are found here.

    Raises:
        SettingsError: No network has that name.
        DatasetError: The scans are single voxels.
    """
    check_network(name)
    preset = PRESETS.get(name)
    if preset is None:
        return Fitted(*fit_network(name, _framed(ground, draft, ground.patch_voxels)))
    limit = preset.values[draft.spatial_dims - 2]
    voxels = _MOST_VOXELS[draft.spatial_dims] if limit else ground.patch_voxels
    if limit:
        draft = replace(draft, widest=_WIDEST[draft.spatial_dims])
    while True:
        frame = _framed(ground, draft, voxels)
        patch, network = fit_network(preset.network, frame)
        network = _blocks(network, preset)
        found = feature_values(network, patch) if limit else 0
        if found <= limit or len(frame.strides) <= 2:
            break
        voxels = int(voxels * _SHRINK)
    if not limit:
        return Fitted(patch, network, reason=f"blocks and width of {name}")
    held = preset.covered * ground.cases * prod(ground.shape) / prod(patch)
    batch = round(limit / found * _REFERENCE_BATCH[draft.spatial_dims])
    batch = max(_LEAST_BATCH, min(batch, round(held)))
    reason = f"{name}, made for {preset.memory_gb} GB: {found / 1e6:.0f} of {limit / 1e6:.0f} "
    return Fitted(patch, network, batch, reason + "million numbers in the features of a patch")


def feature_values(network: NetworkPlan, patch: Triple) -> int:
    """Numbers in what all convolutions of a residual U-Net give for one patch.

    Source: counted as the planners of nnU-Net v2 do, which set limits by it.
    """
    voxels, total, channels = prod(patch), network.features[0] * prod(patch), network.features[0]
    sizes = []
    for width, stride, count in zip(
        network.features, network.strides, network.encoder_counts, strict=True
    ):
        voxels //= prod(stride)
        shortcut = width != channels or prod(stride) > 1
        total += (2 * count + shortcut) * width * voxels
        sizes.append(voxels)
        channels = width
    for width, voxels, count in zip(network.features, sizes, network.decoder_counts, strict=False):
        # The convolutions, the upsampling before them and the head after them.
        total += ((count + 1) * width + network.classes) * voxels
    return total


def _framed(ground: Ground, draft: Frame, voxels: int) -> Frame:
    if max(ground.shape) == 1:
        raise DatasetError(
            "training scans",
            expected="more than one voxel",
            got="1 x 1 x 1, the typical scan on the plan's grid",
            cure="See medseg check for the sizes of the scans.",
        )
    # With fewer voxels nothing is left to pool; a preset's search may come so far.
    voxels = max(voxels, _LEAST_VOXELS)
    patch, strides, kernels = patch_and_strides(ground.shape, ground.spacing_mm, voxels)
    return replace(draft, patch=patch, strides=strides, kernels=kernels)


def _blocks(network: NetworkPlan, preset: Preset) -> NetworkPlan:
    stages = len(network.features)
    data: dict[str, Any] = network.model_dump()
    data |= {
        "encoder_convolutions": _per_stage(preset.encoder, stages),
        "decoder_convolutions": _per_stage(preset.decoder, stages - 1),
        "options": data["options"] | {k: _per_stage(v, stages) for k, v in preset.options},
    }
    return NetworkPlan.model_validate(data)


def _per_stage(counts: tuple[int, ...], stages: int) -> tuple[int, ...]:
    return (*counts, *(counts[-1],) * stages)[:stages]
