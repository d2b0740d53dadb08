"""Training variation: chance is drawn in one place and applied in another.

``draw_variation`` turns a random generator into a :class:`Variation`, a record of plain
numbers; ``sample_patch`` and ``vary_intensity`` apply it. The same record gives the same
patch on any worker, at any time. Rotation, scaling, mirroring and cropping are one single
resampling.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import MapTransform, Randomizable
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv1d, grid_sample, interpolate, pad

from medseg.core.plan import AugmentationPlan

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Variation:
    """What chance decided for one sample.

    Attributes:
        matrix: (3, 3) from offsets in the patch to offsets in the volume, both in voxels
            from the centre.
        noise_std: Standard deviation of added Gaussian noise; 0 for none.
        noise_seed: Where that noise starts.
        blur_sigma: In voxels; 0 for none.
        gain, contrast, gamma: Factors; 1 for none.
        coarseness: Down- and up-sampling factor that simulates low resolution; 1 for none.
    """

    matrix: NDArray[np.float64]
    noise_std: float = 0.0
    noise_seed: int = 0
    blur_sigma: float = 0.0
    gain: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0
    coarseness: float = 1.0

    @property
    def is_rigid_grid(self) -> bool:
        """Whether patch voxels fall on volume voxels, so that nothing is interpolated."""
        return bool(np.array_equal(np.abs(self.matrix), np.eye(3)))


def draw_variation(
    rng: np.random.Generator, plan: AugmentationPlan, *, spatial_dims: int, spacing: NDArray[Any]
) -> Variation:
    """Decide the variation of one sample.

    Args:
        rng: Its state alone decides the result.
        plan: Ranges and probabilities.
        spatial_dims: 2 keeps rotation and scaling within the (I, J) plane.
        spacing: (3,) voxel sides; rotation is rigid in millimetres, not in voxels.
    """
    matrix = np.eye(3)
    if rng.random() < plan.affine_probability:
        matrix = _rotation(rng, plan, spatial_dims)
        low, high = np.log(plan.scale)
        factor = np.exp(rng.uniform(low, high))
        matrix = matrix @ np.diag([factor, factor, factor if spatial_dims == 3 else 1.0])
        matrix = np.diag(1 / spacing) @ matrix @ np.diag(spacing)
    for axis in plan.mirror_axes:
        if rng.random() < 0.5:
            matrix[:, axis] *= -1
    share = plan.intensity_probability

    def maybe(probability: float, low: float, high: float, neutral: float) -> float:
        # Both numbers are always drawn, so that one decision does not shift the next.
        hit, value = rng.random() < probability * share, rng.uniform(low, high)
        return float(value) if hit else neutral

    return Variation(
        matrix=matrix,
        noise_std=maybe(0.3, 0.0, 0.3, 0.0),
        noise_seed=int(rng.integers(2**62)),
        blur_sigma=maybe(0.4, 0.5, 1.0, 0.0),
        gain=maybe(0.4, 0.75, 1.25, 1.0),
        contrast=maybe(0.4, 0.65, 1.5, 1.0),
        gamma=maybe(0.5, 0.7, 1.5, 1.0),
        coarseness=maybe(0.4, 1.0, 2.0, 1.0),
    )


def needed_box(
    centre: NDArray[np.float64], matrix: NDArray[np.float64], patch: Triple
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last+1 voxel that a patch around ``centre`` touches; may leave the volume."""
    half = (np.asarray(patch) - 1) / 2
    reach = np.abs(matrix) @ half
    low = np.floor(centre - reach + 1e-6).astype(np.int64)
    high = np.ceil(centre + reach - 1e-6).astype(np.int64) + 1
    return low, np.maximum(high, low + 1)


def sample_patch(
    box: Tensor,
    origin: NDArray[np.float64],
    matrix: NDArray[np.float64],
    *,
    patch: Triple,
    nearest: bool = False,
) -> Tensor:
    """Resample one patch out of a box of voxels.

    Args:
        box: (C, I, J, K) float, the part of the volume that the patch touches.
        origin: (3,) centre of the patch in voxels of the box.
        matrix: (3, 3) from patch offsets to box offsets.
        patch: Shape of the result.
        nearest: Take the nearest voxel (labels) instead of interpolating linearly.

    Returns:
        (C, *patch); 0 outside the box.
    """
    sizes = np.array(box.shape[1:], dtype=np.float64)
    half = (np.asarray(patch, dtype=np.float64) - 1) / 2
    # Patch coordinates run from -1 to 1 between voxel centres (0 along a side of 1); torch
    # wants those of the box from -1 to 1 between its outer edges, last axis first.
    steps = np.diag(2 / sizes) @ matrix @ np.diag(half)
    shift = 2 * (origin + 0.5) / sizes - 1
    i, j, k = (
        torch.linspace(-1, 1, side, device=box.device) if side > 1 else box.new_zeros(1)
        for side in patch
    )
    lines = [
        (float(steps[axis, 0]) * i)[:, None, None]
        + (float(steps[axis, 1]) * j)[:, None]
        + (float(steps[axis, 2]) * k + float(shift[axis]))
        for axis in (2, 1, 0)
    ]
    grid = torch.stack(lines, dim=-1)[None]
    mode = "nearest" if nearest else "bilinear"
    return grid_sample(box[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]


def vary_intensity(voxels: Tensor, variation: Variation) -> Tensor:
    """Apply blur, noise, gain, contrast, low resolution and gamma to (C, I, J, K)."""
    x = voxels
    if variation.blur_sigma > 0:
        x = _blur(x, variation.blur_sigma)
    if variation.noise_std > 0:
        generator = torch.Generator(x.device).manual_seed(variation.noise_seed)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = x + noise * variation.noise_std
    if variation.gain != 1:
        x = x * variation.gain
    if variation.contrast != 1:
        mean = _per_channel(x.mean, x)
        x = ((x - mean) * variation.contrast + mean).clamp(x.amin(), x.amax())
    if variation.coarseness > 1:
        x = _coarsen(x, variation.coarseness)
    if variation.gamma != 1:
        x = _gamma(x, variation.gamma)
    return x


class RandVaryd(MapTransform, Randomizable):
    """Random rotation, scaling, mirroring and intensity for ``{"image": ..., "label": ...}``.

    The image (C, I, J, K) float and the label (1, I, J, K) keep their shape. Chance comes
    from MONAI's own state (``set_random_state``).
    """

    def __init__(
        self, plan: AugmentationPlan, *, image: str = "image", label: str = "label"
    ) -> None:
        super().__init__([image, label], allow_missing_keys=True)
        self.plan, self.image, self.label = plan, image, label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        rng = np.random.default_rng(int(self.R.randint(2**31)))
        a, b, c = (int(side) for side in done[self.image].shape[1:])
        variation = draw_variation(
            rng, self.plan, spatial_dims=2 if c == 1 else 3, spacing=np.ones(3)
        )
        centre = (np.array([a, b, c]) - 1) / 2
        for key in self.key_iterator(done):
            moved = sample_patch(
                torch.as_tensor(done[key]).float(),
                centre,
                variation.matrix,
                patch=(a, b, c),
                nearest=key == self.label,
            )
            done[key] = vary_intensity(moved, variation) if key == self.image else moved
        return done


def _rotation(
    rng: np.random.Generator, plan: AugmentationPlan, spatial_dims: int
) -> NDArray[np.float64]:
    limit = np.deg2rad(plan.rotation_degrees)
    angles = rng.uniform(-limit, limit, size=3)
    matrix = np.eye(3)
    for axis in (2,) if spatial_dims == 2 else (0, 1, 2):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        cosine, sine = np.cos(angles[axis]), np.sin(angles[axis])
        turn[first, first], turn[first, second] = cosine, -sine
        turn[second, first], turn[second, second] = sine, cosine
        matrix = matrix @ turn
    return matrix


def _per_channel(reduce: Any, x: Tensor) -> Tensor:
    result: Tensor = reduce(dim=(1, 2, 3), keepdim=True)
    return result


def _blur(x: Tensor, sigma: float) -> Tensor:
    reach = max(1, round(3 * sigma))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma) ** 2)
    bell = (bell / bell.sum()).to(x.dtype)
    for axis in range(1, 4):
        if x.shape[axis] == 1:
            continue
        lines = x.movedim(axis, -1)
        shape = lines.shape
        flat = pad(lines.reshape(-1, 1, shape[-1]), (reach, reach), mode="replicate")
        x = conv1d(flat, bell[None, None]).reshape(shape).movedim(-1, axis)
    return x


def _coarsen(x: Tensor, factor: float) -> Tensor:
    shape = x.shape[1:]
    small = [max(1, round(side / factor)) for side in shape]
    down = interpolate(x[None], size=small, mode="nearest-exact")
    return interpolate(down, size=shape, mode="trilinear", align_corners=False)[0]


def _gamma(x: Tensor, gamma: float) -> Tensor:
    """Bend the range, then give back the mean and standard deviation (as nnU-Net does)."""
    low, mean = _per_channel(x.amin, x), _per_channel(x.mean, x)
    span = (_per_channel(x.amax, x) - low).clamp(min=1e-6)
    std = _per_channel(x.std, x)
    bent = ((x - low) / span) ** gamma
    bent = (bent - _per_channel(bent.mean, bent)) / _per_channel(bent.std, bent).clamp(min=1e-6)
    return bent * std + mean
