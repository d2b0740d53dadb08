"""The mean of overlapping tiles, of which only what a later tile may touch is held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.inference.windows import Tiling, Triple

Consume = Callable[[Tensor, Triple], None]
Shares = list[list[Tensor]]
Box = tuple[slice, slice, slice]


class Accumulator:
    """Adds up weighted tiles in blocks, each of which leaves once no further tile touches it.

    Contract: tiles come in the order of the tiling. ``consume(block, corner)`` gets each block
    (channels, i, j, k) once, with the voxel it begins at, ordered by the first axis of
    ``tiling.order`` and then the second; along the third a block is as long as the volume.
    Together they cover the volume. A block is the consumer's to keep or change.

    Args:
        tiling: Where the tiles lie.
        shares: From ``tiling.shares``.
        channels: Of a tile.
        device: Where blocks are held.
        dtype: Of the blocks: float32, or float16 for half the memory.
        consume: What takes the blocks.
    """

    def __init__(
        self,
        tiling: Tiling,
        shares: Sequence[Sequence[NDArray[np.float32]]],
        channels: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        consume: Consume,
    ) -> None:
        self.tiling, self.channels, self.consume = tiling, channels, consume
        self.device, self.dtype = device, dtype
        self._shares = _on(device, shares)
        self._blocks: dict[tuple[int, int], Tensor] = {}
        self._row = (0, 0)

    def add(self, window: Triple, tile: Tensor) -> None:
        """Add one tile.

        Args:
            window: Its number along each axis.
            tile: (channels, *patch) float32, on any device.
        """
        first, second, _ = self.tiling.order
        row = (window[first], window[second])
        if row != self._row:
            self._let_go(before=row)
            self._row = row
        box = self.tiling.inside(window)
        tile, weight = _inner(self.tiling, self._shares, window, tile.to(self.device), box)
        rows, columns = (self.tiling.reached(axis, window[axis]) for axis in (first, second))
        for (n, deep), (m, wide) in product(rows, columns):
            block = self._block((n, m), {first: deep, second: wide})
            _add(block, self._corner(n, m), tile, weight, box)

    def finish(self) -> None:
        """Let the last blocks go."""
        self._let_go(before=None)

    def _block(self, place: tuple[int, int], depths: dict[int, int]) -> Tensor:
        """The block at a place, as deep at least along the first axes; what is new is 0."""
        before = self._blocks.get(place)
        sides = [depths.get(axis, side) for axis, side in enumerate(self.tiling.shape)]
        if before is not None:
            old = [int(side) for side in before.shape[1:]]
            if all(a >= b for a, b in zip(old, sides, strict=True)):
                return before
            sides = [max(a, b) for a, b in zip(old, sides, strict=True)]
        block = torch.zeros((self.channels, *sides), dtype=self.dtype, device=self.device)
        if before is not None:
            block[:, *(slice(0, side) for side in old)] = before
        self._blocks[place] = block
        return block

    def _corner(self, n: int, m: int) -> Triple:
        corner = [0, 0, 0]
        first, second, _ = self.tiling.order
        corner[first], corner[second] = self.tiling.edges[first][n], self.tiling.edges[second][m]
        return corner[0], corner[1], corner[2]

    def _let_go(self, *, before: tuple[int, int] | None) -> None:
        done = [p for p in self._blocks if before is None or self.tiling.last_row(p) < before]
        for place in sorted(done):
            self.consume(self._blocks.pop(place), self._corner(*place))


class Whole:
    """Adds up weighted tiles in one tensor of the whole volume: for who wants all logits.

    Args:
        tiling: Where the tiles lie.
        shares: From ``tiling.shares``.
        channels: Of a tile.
        device: Where the sum lies.

    Attributes:
        total: (channels, I, J, K) float32; the mean once all tiles were added.
    """

    def __init__(
        self,
        tiling: Tiling,
        shares: Sequence[Sequence[NDArray[np.float32]]],
        channels: int,
        *,
        device: torch.device,
    ) -> None:
        self.tiling, self._shares = tiling, _on(device, shares)
        self.total = torch.zeros((channels, *tiling.shape), device=device)

    def add(self, window: Triple, tile: Tensor) -> None:
        """Add one tile, as :meth:`Accumulator.add` does."""
        box = self.tiling.inside(window)
        tile = tile.to(self.total.device)
        tile, weight = _inner(self.tiling, self._shares, window, tile, box)
        _add(self.total, (0, 0, 0), tile, weight, box)


def _on(device: torch.device, shares: Sequence[Sequence[NDArray[np.float32]]]) -> Shares:
    return [[torch.from_numpy(one).to(device) for one in axis] for axis in shares]


def _inner(
    tiling: Tiling, shares: Shares, window: Triple, tile: Tensor, box: Box
) -> tuple[Tensor, Tensor]:
    """The part of a tile that lies in the volume, at ``box``, and its weights."""
    a, b, c = (shares[axis][n] for axis, n in enumerate(window))
    weight = a[:, None, None] * b[:, None] * c
    real = tuple(
        slice(before, before + part.stop - part.start)
        for part, (before, _) in zip(box, tiling.gaps, strict=True)
    )
    return tile[:, *real], weight[real]


def _add(block: Tensor, corner: Triple, tile: Tensor, weight: Tensor, box: Box) -> None:
    """Add the part of a weighted tile, which lies at ``box``, that falls into a block."""
    there, here = [], []
    for part, low, side in zip(box, corner, block.shape[1:], strict=True):
        start, stop = max(part.start, low), min(part.stop, low + int(side))
        there.append(slice(start - low, stop - low))
        here.append(slice(start - part.start, stop - part.start))
    weight = weight[tuple(here)]
    # Class by class: what is made beside the tile is one class of it.
    for total, logits in zip(block[:, *there], tile[:, *here], strict=True):
        if total.dtype == torch.float32:
            total.addcmul_(logits, weight)
        else:
            total.add_(logits * weight)
