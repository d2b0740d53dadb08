"""Two ways to keep the masks of a case: one label image, or layers that may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.core.errors import GeometryError, LabelError

Box = tuple[slice, ...]
LARGEST_VALUE = 65535


class Masks(Protocol):
    """The masks of one case by label value.

    Contract: ``shape`` is (I, J, K). ``boxes`` tells of each value that occurs the box
    around it. ``crop`` gives a value inside a box, as booleans of the box's size.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def values(self) -> tuple[int, ...]:
        """The values that occur, ascending, without 0."""

    def boxes(self, values: Sequence[int]) -> Mapping[int, Box]: ...

    def crop(self, value: int, box: Box) -> NDArray[np.bool_]: ...


@dataclass(frozen=True)
class LabelImage:
    """A label image: each voxel has one value.

    Attributes:
        array: (I, J, K) integers; 0 is background.
    """

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @cached_property
    def _filled(self) -> Box:
        """The box around all labels: most of a scan is background."""
        return box_of(self.array) or (slice(0, 0),) * self.array.ndim

    @property
    def values(self) -> tuple[int, ...]:
        found = sorted({int(value) for value in _unique(self.array[self._filled])} - {0})
        if found and not 0 < found[0] <= found[-1] <= LARGEST_VALUE:
            raise LabelError(
                "label values", expected=f"1 to {LARGEST_VALUE}", got=f"{found[0]} to {found[-1]}",
                cure="Renumber the labels, or name those to be scored.",
            )  # fmt: skip
        return tuple(found)

    def boxes(self, values: Sequence[int]) -> dict[int, Box]:
        top, array = max(values, default=0), self.array[self._filled]
        if top < 1 or array.size == 0:
            return {}
        if array.dtype.kind == "b":
            array = array.view(np.uint8)
        elif array.max(initial=0) > top or array.dtype.itemsize > 4 or array.dtype.kind != "u":
            # Values above the wanted ones, or below 0, would be taken for others.
            array = np.where((array <= top) & (array > 0), array, 0).astype(np.int32)
        found = _find_objects(array, top)
        starts = [side.start for side in self._filled]
        return {
            value: tuple(
                slice(side.start + start, side.stop + start)
                for side, start in zip(box, starts, strict=True)
            )
            for value, box in enumerate(found, start=1)
            if box is not None
        }

    def crop(self, value: int, box: Box) -> NDArray[np.bool_]:
        return np.asarray(self.array[box] == value)


@dataclass(frozen=True)
class LayeredMasks:
    """One mask per label, cut to the box around it; layers may overlap.

    Attributes:
        shape: (I, J, K) of the whole image.
        layers: Box and booleans of the box's size, by label value; none for an empty mask.
    """

    shape: tuple[int, ...]
    layers: Mapping[int, tuple[Box, NDArray[np.bool_]]]

    @classmethod
    def cut(cls, shape: tuple[int, ...], masks: Iterable[tuple[int, NDArray[Any]]]) -> LayeredMasks:
        """Cut whole masks (I, J, K), whatever is not 0, to their boxes, one after another.

        Masks of the same value are united.

        Raises:
            GeometryError: A mask is not of the shape of the image.
        """
        cut = cls(shape, {})
        for value, mask in masks:
            cut = cut.with_mask(value, mask)
        return cut

    def with_mask(self, value: int, mask: NDArray[Any]) -> LayeredMasks:
        """The same with one more mask (I, J, K), united with what the value has.

        Raises:
            GeometryError: The mask is not of the shape of the image.
        """
        if mask.shape != self.shape:
            raise GeometryError(
                f"mask {value}", expected=f"shape {self.shape}", got=str(mask.shape)
            )
        inside = mask if mask.dtype.kind == "b" else mask != 0
        found = box_of(inside)
        if found is None:
            return self
        layer = inside[found].copy()
        if value in self.layers:
            found = union_of(found, self.layers[value][0])
            layer = inside[found] | self.crop(value, found)
        return LayeredMasks(self.shape, {**self.layers, value: (found, layer)})

    def without(self, left_out: NDArray[np.bool_]) -> LayeredMasks:
        """The same where ``left_out`` (I, J, K) is False, and nothing where it is True."""
        kept: dict[int, tuple[Box, NDArray[np.bool_]]] = {}
        for value, (box, mask) in self.layers.items():
            inside = mask & ~left_out[box]
            found = box_of(inside)
            if found is not None:
                own = tuple(
                    slice(side.start + part.start, side.start + part.stop)
                    for side, part in zip(box, found, strict=True)
                )
                kept[value] = own, inside[found]
        return LayeredMasks(self.shape, kept)

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(sorted(self.layers))

    def boxes(self, values: Sequence[int]) -> dict[int, Box]:
        return {value: self.layers[value][0] for value in values if value in self.layers}

    def crop(self, value: int, box: Box) -> NDArray[np.bool_]:
        result = np.zeros([side.stop - side.start for side in box], dtype=np.bool_)
        if value not in self.layers:
            return result
        own, mask = self.layers[value]
        common = [
            (max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(own, box, strict=True)
        ]
        if all(start < stop for start, stop in common):
            target, source = (
                tuple(
                    slice(start - side.start, stop - side.start)
                    for (start, stop), side in zip(common, sides, strict=True)
                )
                for sides in (box, own)
            )
            result[target] = mask[source]
        return result

    def painted(self, dtype: Any) -> NDArray[Any]:
        """A label image for a picture: later values over earlier ones."""
        image = np.zeros(self.shape, dtype=dtype)
        for value, (box, mask) in sorted(self.layers.items()):
            image[box][mask] = value
        return image


def as_masks(masks: NDArray[Any] | Masks) -> Masks:
    """A bare array is a label image."""
    return LabelImage(masks) if isinstance(masks, np.ndarray) else masks


def box_of(mask: NDArray[Any]) -> Box | None:
    """The box around all that is not 0 in a mask (I, J, K); None where all is."""
    # Rows that lie together in memory are read together, whatever the order of the axes.
    turned = mask.T if mask.flags.f_contiguous else mask
    inside = turned.astype(np.bool_, copy=False)
    rows = np.flatnonzero(inside.reshape(len(inside), -1).any(axis=1))
    if rows.size == 0:
        return None
    flat = np.asarray(inside[rows[0] : rows[-1] + 1].any(axis=0))
    lines = (rows, np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0)))
    box = tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)
    return box if turned is mask else box[::-1]


def union_of(first: Box, second: Box) -> Box:
    """The box around two boxes."""
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(first, second, strict=True)
    )


def check_shapes(prediction: tuple[int, ...], reference: tuple[int, ...]) -> None:
    """Refuse masks of different sizes.

    Raises:
        GeometryError: They differ.
    """
    if prediction != reference:
        raise GeometryError("masks to compare", expected=f"shape {reference}", got=str(prediction))


def _find_objects(array: NDArray[Any], top: int) -> list[Box | None]:
    """As SciPy's, which is many times slower where the first axis runs fastest in memory."""
    if array.strides[0] >= array.strides[-1]:
        return list(ndimage.find_objects(array, max_label=top))
    found: list[Box | None] = list(ndimage.find_objects(array.T, max_label=top))
    return [None if box is None else box[::-1] for box in found]


def _unique(array: NDArray[Any]) -> NDArray[Any]:
    if array.size and array.dtype.kind in "ub" and array.dtype.itemsize <= 2:
        # Counting is many times faster than the sorting of numpy.unique.
        counts = np.zeros(1 << 8 * array.dtype.itemsize, dtype=np.int64)
        for plane in array:
            counts += np.bincount(plane.ravel(order="K"), minlength=counts.size)
        return np.flatnonzero(counts)
    return np.unique(array)
