"""Training variation: chance is drawn in one place and applied in another.

``draw_variation`` turns a random generator into a :class:`Variation`, a record of plain
numbers. :mod:`medseg.transforms.augment_space` and :mod:`medseg.transforms.augment_values`
apply it. The same record gives the same patch on any worker, at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.augmentation_plan import AugmentationPlan, Chance

Triple = tuple[int, int, int]
Vector = tuple[float, float, float]
_MOST_BOXES = 3
_DEGREE = 3


@dataclass(frozen=True)
class Elastic:
    """A smooth displacement: cubic B-splines between random control points.

    Attributes:
        step: Voxels between control points along each axis.
        reach: Most displacement along each axis, in voxels.
        seed: Where the displacements of the control points start.
    """

    step: Vector
    reach: Vector
    seed: int


@dataclass(frozen=True)
class Spike:
    """One wave over the patch: a pair of bright points in k-space.

    Attributes:
        frequency: Waves per side of the patch.
        phase: In radians.
        height: In standard deviations of the patch.
    """

    frequency: Triple
    phase: float
    height: float


@dataclass(frozen=True)
class Lines:
    """What befalls the lines of k-space along one axis; strength 0 or a shift of 0 is nothing.

    Attributes:
        axis: Along which lines are measured one after another.
        every: Which lines are weakened: each second, third ...
        strength: By which share.
        shift: Voxels by which the patient has moved when the outer lines are measured.
        inner: Share of the lines that were measured before.
    """

    axis: int
    every: int = 2
    strength: float = 0.0
    shift: float = 0.0
    inner: float = 0.1


@dataclass(frozen=True)
class Variation:
    """What chance decided for one sample.

    Attributes:
        matrix: (3, 3) from offsets in the patch to offsets in the volume, both in voxels
            from the centre.
        mirrored: Working axes along which the patch is mirrored; the matrix holds that, too.
        elastic: A smooth displacement before the matrix; None for none.
        bias: (4, 4, 4) Legendre coefficients of the logarithm of a bias field; None for none.
        lines: What befalls k-space.
        spike: A wave over the patch; None for none.
        blur_sigma: In voxels; 0 for none.
        noise_std: Standard deviation of added Gaussian noise; 0 for none.
        noise_seed: Where that noise starts.
        gain, contrast, gamma, inverse_gamma: Factors; 1 for none.
        coarseness: Down- and up-sampling factor that simulates low resolution; 1 for none.
        boxes: Boxes that are set to 0: centre and side along each axis, as shares of the patch.
    """

    matrix: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    mirrored: tuple[int, ...] = ()
    elastic: Elastic | None = None
    bias: NDArray[np.float64] | None = None
    lines: tuple[Lines, ...] = ()
    spike: Spike | None = None
    blur_sigma: float = 0.0
    noise_std: float = 0.0
    noise_seed: int = 0
    gain: float = 1.0
    contrast: float = 1.0
    coarseness: float = 1.0
    gamma: float = 1.0
    inverse_gamma: float = 1.0
    boxes: tuple[tuple[Vector, Vector], ...] = ()

    @property
    def on_grid(self) -> bool:
        """Whether patch voxels may fall on volume voxels, so that nothing is interpolated."""
        return self.elastic is None and bool(np.array_equal(np.abs(self.matrix), np.eye(3)))


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
    matrix, mirrored = _draw_matrix(rng, plan, spatial_dims, spacing)
    elastic = _draw_elastic(rng, plan, spatial_dims, spacing)
    chances = _Chances(rng, plan.intensity_probability)
    bias = chances.value(plan.bias_field, 0.0)
    ghost, motion = chances.value(plan.ghosting, 0.0), chances.value(plan.motion, 0.0)
    spike = chances.value(plan.spike, 0.0)
    noise = chances.value(plan.noise, 0.0)
    cutout = chances.value(plan.cutout, 0.0)
    # Details have a generator each, so that one step does not shift the draws of the next.
    details = [np.random.default_rng(int(rng.integers(2**62))) for _ in range(4)]
    return Variation(
        matrix=matrix,
        mirrored=mirrored,
        elastic=elastic,
        bias=_bias(details[0], bias, spatial_dims) if bias else None,
        lines=_lines(details[1], ghost, motion, spatial_dims),
        spike=_spike(details[2], spike, spatial_dims) if spike else None,
        blur_sigma=chances.value(plan.blur, 0.0),
        noise_std=noise,
        noise_seed=int(rng.integers(2**62)),
        gain=chances.value(plan.gain, 1.0),
        contrast=chances.value(plan.contrast, 1.0),
        coarseness=chances.value(plan.coarseness, 1.0),
        gamma=chances.value(plan.gamma, 1.0),
        inverse_gamma=chances.value(plan.inverse_gamma, 1.0),
        boxes=_boxes(details[3], cutout, spatial_dims) if cutout else (),
    )


@dataclass(frozen=True)
class _Chances:
    """Draws whether a step is taken, and its value."""

    rng: np.random.Generator
    share: float

    def value(self, chance: Chance, neutral: float) -> float:
        # Both numbers are always drawn, so that one decision does not shift the next.
        hit = self.rng.random() < chance.probability * self.share
        value = self.rng.uniform(chance.low, chance.high)
        return float(value) if hit else neutral


def _draw_matrix(
    rng: np.random.Generator, plan: AugmentationPlan, spatial_dims: int, spacing: NDArray[Any]
) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    matrix = np.eye(3)
    if rng.random() < plan.affine_probability:
        matrix = _rotation(rng, plan, spatial_dims)
        low, high = np.log(plan.scale)
        factor = np.exp(rng.uniform(low, high))
        matrix = matrix @ np.diag([factor, factor, factor if spatial_dims == 3 else 1.0])
        matrix = np.diag(1 / spacing) @ matrix @ np.diag(spacing)
    mirrored = tuple(axis for axis in plan.mirror_axes if rng.random() < 0.5)
    for axis in mirrored:
        matrix[:, axis] *= -1
    return matrix, mirrored


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


def _draw_elastic(
    rng: np.random.Generator, plan: AugmentationPlan, spatial_dims: int, spacing: NDArray[Any]
) -> Elastic | None:
    hit, seed = rng.random() < plan.elastic_probability, int(rng.integers(2**62))
    if not hit:
        return None
    # Equal millimetres, counted in the finest voxels that the network sees in its plane.
    step = plan.elastic_distance * spacing[:spatial_dims].min() / spacing
    # Less than two voxels apart, control points would be noise.
    step = np.maximum(step, 2.0)
    reach = plan.elastic_strength * step * (np.arange(3) < spatial_dims)
    return Elastic(_vector(step), _vector(reach), seed)


def _bias(rng: np.random.Generator, most: float, spatial_dims: int) -> NDArray[np.float64]:
    """Random coefficients of all terms up to degree 3 but the constant one."""
    coefficients = rng.uniform(-most, most, (_DEGREE + 1,) * 3)
    order = np.add.outer(np.add.outer(np.arange(4), np.arange(4)), np.arange(4))
    coefficients[(order > _DEGREE) | (order == 0)] = 0
    if spatial_dims == 2:
        coefficients[:, :, 1:] = 0
    return coefficients


def _lines(
    rng: np.random.Generator, ghost: float, motion: float, spatial_dims: int
) -> tuple[Lines, ...]:
    axes = rng.integers(spatial_dims, size=2)
    every, sign = int(rng.integers(2, 6)), float(rng.choice([-1.0, 1.0]))
    inner = float(rng.uniform(0.05, 0.3))
    found = []
    if ghost:
        found.append(Lines(int(axes[0]), every=every, strength=ghost))
    if motion:
        found.append(Lines(int(axes[1]), shift=sign * motion, inner=inner))
    return tuple(found)


def _spike(rng: np.random.Generator, height: float, spatial_dims: int) -> Spike:
    a, b, c = (int(side) for side in rng.integers(-12, 13, size=3))
    # The constant is no wave.
    frequency = (a or 5, b, c if spatial_dims == 3 else 0)
    return Spike(frequency, float(rng.uniform(0, 2 * np.pi)), height)


def _boxes(
    rng: np.random.Generator, most: float, spatial_dims: int
) -> tuple[tuple[Vector, Vector], ...]:
    found = []
    for _ in range(int(rng.integers(1, _MOST_BOXES + 1))):
        centre, sides = rng.uniform(0, 1, 3), rng.uniform(0.3 * most, most, 3)
        if spatial_dims == 2:
            centre[2], sides[2] = 0.5, 1.0
        found.append((_vector(centre), _vector(sides)))
    return tuple(found)


def _vector(values: NDArray[Any]) -> Vector:
    a, b, c = (float(value) for value in values)
    return a, b, c
