"""Where voxels lie in the patient. The only code in the house that knows LPS from RAS.

Conventions: an affine maps voxel indices (i, j, k) at voxel centres to millimetres in
RAS+ (x to the patient's Right, y to the Anterior, z to the Superior), as NIfTI-1 defines
it. ITK and DICOM use LPS+ (x to the Left, y to the Posterior): the first two rows change
their sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import GeometryError

Triple = tuple[int, int, int]
FloatTriple = tuple[float, float, float]
# Below this the axes of a grid count as orthogonal: headers hold rounded numbers.
SHEAR_TOLERANCE_VOXELS = 0.1
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Orientation:
    """An exchange and flip of the three voxel axes: exact, and exactly invertible.

    Attributes:
        axes: For each axis of the result, the axis of the source that it shows.
        flips: For each axis of the result, whether it runs against the source.
    """

    axes: Triple
    flips: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array (..., I, J, K) into this orientation; a view, no copy."""
        lead = array.ndim - 3
        turned = np.transpose(array, (*range(lead), *(lead + axis for axis in self.axes)))
        flipped = tuple(lead + axis for axis in range(3) if self.flips[axis])
        return np.asarray(np.flip(turned, flipped))

    def inverse(self) -> Orientation:
        """The orientation that undoes this one."""
        axes = tuple(self.axes.index(axis) for axis in range(3))
        flips = tuple(self.flips[axis] for axis in axes)
        return Orientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def affine(self, shape: Triple) -> NDArray[np.float64]:
        """4x4 matrix from voxel indices of the result to those of a source of ``shape``."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for axis, (source, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[source, axis] = -1.0 if flip else 1.0
            matrix[source, 3] = shape[source] - 1 if flip else 0.0
        return matrix


ALL_ORIENTATIONS: tuple[Orientation, ...] = tuple(
    Orientation((a, b, c), (f, g, h))
    for a, b, c in permutations(range(3))
    for f, g, h in product((False, True), repeat=3)
)


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a scan: its number of voxels and where they lie.

    Attributes:
        shape: Voxels along the axes (I, J, K); a 2D image has K = 1.
        affine_ras: (4, 4) float64, voxel centre (i, j, k, 1) to RAS+ millimetres; read-only.

    Raises:
        GeometryError: The shape is empty, or the affine is not finite or not invertible.
    """

    shape: Triple
    affine_ras: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine_ras, dtype=np.float64)
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError("grid", expected="three sizes of at least 1", got=str(shape))
        # Far beyond any scanner, and still small enough to be squared.
        if affine.shape != (4, 4) or not (np.abs(affine) < 1e15).all():
            raise GeometryError(
                "affine",
                expected="a finite 4x4 matrix",
                got=np.array2string(affine, precision=3),
                cure="Repair the header's sform or qform.",
            )
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if sizes.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
            raise GeometryError(
                "affine",
                expected="three independent axes",
                got=f"axis lengths {sizes.tolist()} mm that span no volume",
                cure="Repair the header's sform or qform.",
            )
        affine.setflags(write=False)
        object.__setattr__(self, "affine_ras", affine)
        object.__setattr__(self, "shape", shape)

    @property
    def spacing_mm(self) -> FloatTriple:
        """Distance between voxel centres along I, J, K."""
        a, b, c = np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        return float(a), float(b), float(c)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel, also when the axes are sheared."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3])))

    @property
    def axis_codes(self) -> str:
        """Nearest anatomical direction of each axis, for example ``"LPS"``."""
        closest = self.orientation_to_ras()
        codes = [""] * 3
        for world, (axis, flip) in enumerate(zip(closest.axes, closest.flips, strict=True)):
            codes[axis] = ("LPI" if flip else "RAS")[world]
        return "".join(codes)

    @property
    def shear_voxels(self) -> float:
        """How far, in voxels, the grid strays from right angles at its far corner."""
        steps = self.affine_ras[:3, :3]
        if np.count_nonzero(steps) == 3:  # along the patient's axes, as most are
            return 0.0
        u, _, v = np.linalg.svd(steps / np.linalg.norm(steps, axis=0))
        straight = (u @ v) * np.asarray(self.spacing_mm)
        far = np.asarray(self.shape, dtype=np.float64) - 1
        stray = np.linalg.solve(straight, (steps - straight) @ far)
        return float(np.abs(stray).max())

    def orientation_to_ras(self) -> Orientation:
        """The exchange and flip of axes that brings this grid closest to RAS+.

        The rotation part is found by polar decomposition, so that unequal voxel sizes do
        not tip the choice; of the six assignments the one with the largest sum wins.
        """
        return _closest_to_ras(self.affine_ras[:3, :3].tobytes())

    @property
    def is_regular(self) -> bool:
        """Whether the axes are at right angles, to a tenth of a voxel at the far corner."""
        return self.shear_voxels < SHEAR_TOLERANCE_VOXELS

    def regular_cover(self) -> Geometry:
        """The grid at right angles that covers this one, for scans with tilt or shear.

        The two finer axes keep their plane and the coarsest is made normal to it: of a CT
        with gantry tilt the new planes are the old slices, shifted within themselves.
        """
        steps = self.affine_ras[:3, :3]
        axes = np.zeros((3, 3))
        done: list[int] = []
        for axis in np.argsort(np.asarray(self.spacing_mm), kind="stable"):
            rest = steps[:, axis] - sum((axes[:, d] @ steps[:, axis]) * axes[:, d] for d in done)
            axes[:, axis] = rest / np.linalg.norm(rest)
            done.append(int(axis))
        frame = axes * np.abs(np.einsum("ij,ij->j", axes, steps))
        corners = np.array(list(product(*((0, size - 1) for size in self.shape))))
        places = np.linalg.solve(frame, steps @ corners.T)
        low = np.floor(places.min(axis=1) + 1e-6)
        a, b, c = (int(n) for n in np.ceil(places.max(axis=1) - 1e-6) - low + 1)
        affine = np.eye(4)
        affine[:3, :3] = frame
        affine[:3, 3] = self.affine_ras[:3, 3] + frame @ low
        return Geometry((a, b, c), affine)

    def reoriented(self, orientation: Orientation) -> Geometry:
        """The same voxels in the order that ``orientation.apply`` gives them."""
        a, b, c = (self.shape[axis] for axis in orientation.axes)
        return Geometry((a, b, c), self.affine_ras @ orientation.affine(self.shape))

    def with_shape(self, shape: Triple) -> Geometry:
        """The same box of space cut into another number of voxels (outer edges coincide)."""
        scale = np.asarray(self.shape, dtype=np.float64) / np.asarray(shape, dtype=np.float64)
        change = np.diag([*scale, 1.0])
        change[:3, 3] = (scale - 1.0) / 2.0
        a, b, c = (int(size) for size in shape)
        return Geometry((a, b, c), self.affine_ras @ change)

    def cut(self, box: tuple[slice, slice, slice]) -> Geometry:
        """The grid of a box of this one's voxels; start and stop of each slice are given."""
        change = np.eye(4)
        change[:3, 3] = [part.start for part in box]
        a, b, c = (part.stop - part.start for part in box)
        return Geometry((a, b, c), self.affine_ras @ change)

    def shape_at(self, spacing_mm: tuple[float | None, float | None, float | None]) -> Triple:
        """Number of voxels when the box is cut at a spacing; None keeps an axis as it is."""
        sizes = []
        for size, old, new in zip(self.shape, self.spacing_mm, spacing_mm, strict=True):
            # Rounded to a thousandth first: a turned affine differs from a straight one in
            # its last bits, and must not get another number of voxels for it.
            sizes.append(size if new is None else max(1, int(round(size * old / new, 3) + 0.5)))
        return sizes[0], sizes[1], sizes[2]

    def difference(self, other: Geometry, *, tolerance_voxels: float = 0.01) -> str | None:
        """Say in words how another grid differs; None when they are the same grid.

        Two affines count as equal when no corner of the grid moves by more than
        ``tolerance_voxels`` of the smallest voxel side (headers hold float32).
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        if np.array_equal(self.affine_ras, other.affine_ras):
            return None
        corners = np.array(
            [[*corner, 1.0] for corner in product(*((0, size - 1) for size in self.shape))]
        )
        shift_mm = np.linalg.norm((corners @ (self.affine_ras - other.affine_ras).T)[:, :3], axis=1)
        if shift_mm.max() <= tolerance_voxels * min(*self.spacing_mm, *other.spacing_mm):
            return None
        turned = (
            ""
            if self.axis_codes == other.axis_codes
            else (f", axes {self.axis_codes} against {other.axis_codes}")
        )
        return f"the same shape, but corners up to {shift_mm.max():.3g} mm apart{turned}"

    def to_lps(self) -> tuple[FloatTriple, FloatTriple, tuple[float, ...]]:
        """Origin (mm), spacing (mm) and row-major direction cosines in LPS+, as ITK has them."""
        affine_lps = _LPS_FROM_RAS @ self.affine_ras
        direction = affine_lps[:3, :3] / np.asarray(self.spacing_mm)
        x, y, z = (float(value) for value in affine_lps[:3, 3])
        return (x, y, z), self.spacing_mm, tuple(float(value) for value in direction.ravel())

    @classmethod
    def from_lps(
        cls,
        shape: tuple[int, ...],
        origin_mm: tuple[float, ...],
        spacing_mm: tuple[float, ...],
        direction: tuple[float, ...],
    ) -> Geometry:
        """Build a geometry from what ITK or DICOM state in LPS+; 2D gets a third axis of 1 mm."""
        dims = len(spacing_mm)
        affine_lps = np.eye(4)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below
            affine_lps[:dims, :dims] = np.reshape(direction, (dims, dims)) * np.asarray(spacing_mm)
            affine_lps[:dims, 3] = origin_mm
            affine_ras = _LPS_FROM_RAS @ affine_lps
        full = (*shape, 1)[:3] if dims == 2 else shape
        a, b, c = (int(size) for size in full)
        return cls((a, b, c), affine_ras)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Geometry):
            return NotImplemented
        return self.shape == other.shape and bool(np.array_equal(self.affine_ras, other.affine_ras))

    def __hash__(self) -> int:
        return hash((self.shape, self.affine_ras.tobytes()))


@lru_cache(maxsize=1024)
def _closest_to_ras(matrix: bytes) -> Orientation:
    """:meth:`Geometry.orientation_to_ras` of a (3, 3) float64: most scans share a few."""
    steps = np.frombuffer(matrix, dtype=np.float64).reshape(3, 3)
    u, _, v = np.linalg.svd(steps / np.linalg.norm(steps, axis=0))
    rotation = u @ v
    best = max(
        permutations(range(3)),
        # Rounded, so that a tie (45 degrees) falls the same way whatever the last bits are.
        key=lambda axes: round(sum(abs(rotation[world, axes[world]]) for world in range(3)), 6),
    )
    flips = [bool(rotation[world, axis] < 0) for world, axis in enumerate(best)]
    return Orientation((best[0], best[1], best[2]), (flips[0], flips[1], flips[2]))
