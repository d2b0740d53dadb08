"""The mean of models with plans of their own: on the scan's grid, through a file on the disk.

Each model runs streamed; its restored probabilities are added to the file box by box as they
leave. What is in memory is a slab, whatever the number of classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.inference.memory import Ring
from medseg.inference.predictor import Predictor
from medseg.inference.products import Products, as_stored, entropy
from medseg.inference.volume import Volume
from medseg.io.scratch import ScratchArray
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.restore import Box, Sink
from medseg.transforms.winners import Activation, class_dtype

Triple = tuple[int, int, int]
_SLAB_VALUES = 1 << 24


class MeanProbabilities:
    """Probabilities of each label, averaged over models; on the disk, gone when it is closed.

    Args:
        folder: Where the file lies.
        shape: (I, J, K) of the scan's grid.
        labels: How many there are, background not counted.
        models: How many will be added.
        activation: Of all of them.
        precision: Of the file: ``"fp32"``, ``"fp16"``, or ``"auto"`` for fp32 where that takes
            less than half of the room on the disk.

    Raises:
        OutputError: The folder has no room for it.
    """

    def __init__(
        self,
        folder: Path,
        shape: Triple,
        labels: int,
        *,
        models: int,
        activation: Activation,
        precision: Ring = "auto",
    ) -> None:
        self._labels, self._shape, self._activation = labels, shape, activation
        self._share, self._added = np.float32(1 / models), 0
        self._sum = ScratchArray(
            folder,
            (labels, *shape),
            "float16"
            if _is_half(folder, 4 * labels * int(np.prod(shape)), precision)
            else "float32",
            # Slices one after another, in each of them the labels: both ways run along K.
            order=(3, 0, 2, 1),
        )

    @property
    def nbytes(self) -> int:
        """Size of its file."""
        return self._sum.nbytes

    def add(
        self,
        predictor: Predictor,
        voxels: Tensor | Volume,
        record: RestoreRecord,
        places: Mapping[str, int],
    ) -> None:
        """Run one model and add what it gives.

        Args:
            predictor: The model.
            voxels: (C, I, J, K) on ``record.working``.
            record: The way back to the grid of the mean.
            places: For each label of the model, which it is of the mean, from 0.

        Raises:
            ResourceError: The memory does not reach.
            OutputError: The disk is full.
        """
        products = Products(probabilities=tuple(places), dtype="float32")
        sinks = {
            name: _Adding(self._sum, place, self._share, first=not self._added)
            for name, place in zip(products.names, places.values(), strict=True)
        }
        predictor.stream(voxels, record, _Nothing(), products=products, product_sinks=sinks)
        self._added += 1

    def classes(self) -> Iterator[tuple[Box, NDArray[Any]]]:
        """Class indices (I, J, depth), slab by slab along K, each with its box."""
        for box, chances in self._slabs():
            yield box, self._winners(chances)

    def give(self, products: Products, names: Sequence[str], sinks: Mapping[str, Sink]) -> None:
        """Write products of the mean; not disagreement, of which it knows nothing.

        Args:
            products: What is wanted.
            names: Of the labels of the mean, in order.
            sinks: One for each of ``products.names``.
        """
        softmax = self._activation == "softmax"
        for box, chances in self._slabs():
            wide = torch.from_numpy(chances.astype(np.float32, copy=False))
            made = [wide[names.index(name)] for name in products.probabilities]
            if products.entropy:
                rest = (1 - wide.sum(dim=0, keepdim=True)).clamp(min=0)
                made.append(entropy(torch.cat([rest, wide]) if softmax else wide, softmax=softmax))
            for name, one in zip(products.names, made, strict=True):
                sinks[name].write(box, as_stored(one, products).numpy())

    def _slabs(self) -> Iterator[tuple[Box, NDArray[Any]]]:
        """Probabilities (labels, I, J, depth)."""
        across, down, count = self._shape
        depth = max(1, _SLAB_VALUES // (across * down * self._labels))
        for start in range(0, count, depth):
            box = slice(0, across), slice(0, down), slice(start, min(start + depth, count))
            yield box, self._sum.read((slice(0, self._labels), *box))

    def _winners(self, chances: NDArray[Any]) -> NDArray[Any]:
        """Class indices of (labels, ...) probabilities."""
        dtype = class_dtype(self._labels + 1)
        if self._activation == "regions":
            found = np.zeros(chances.shape[1:], dtype)
            for number, region in enumerate(chances, start=1):
                found[region > 0.5] = number
            return found
        wide = chances.astype(np.float32, copy=False)
        # In the order of the file, which is several times as fast.
        highest, best = torch.from_numpy(wide.transpose(3, 0, 2, 1)).max(dim=1)
        # What is left for the background is what the labels do not take.
        sure = highest.numpy().transpose(2, 1, 0) > 1 - wide.sum(axis=0)
        return np.where(sure, best.numpy().transpose(2, 1, 0) + 1, 0).astype(dtype)

    def close(self) -> None:
        """Give the space on the disk back."""
        self._sum.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Adding:
    """A sink that adds its share to one label of the file."""

    def __init__(self, total: ScratchArray, place: int, share: np.float32, *, first: bool) -> None:
        self._total, self._place, self._share, self._first = total, place, share, first

    def write(self, box: Box, values: NDArray[Any]) -> None:
        whole = (slice(self._place, self._place + 1), *box)
        more = (values * self._share)[None]
        if not self._first:
            more = more + self._total.read(whole)
        self._total.write(whole, more)


class _Nothing:
    """A sink for what nobody wants."""

    def write(self, box: Box, values: NDArray[Any]) -> None:
        pass


def _is_half(folder: Path, wide_bytes: int, precision: Ring) -> bool:
    if precision != "auto":
        return precision == "fp16"
    folder.mkdir(parents=True, exist_ok=True)
    return wide_bytes > shutil.disk_usage(folder).free // 2
