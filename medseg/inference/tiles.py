"""The logits of tiles: the mean over members and mirrored views, several tiles at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain, combinations

import torch
from torch import Tensor
from torch.nn.functional import pad

from medseg.core.errors import ResourceError
from medseg.core.plan import Plan
from medseg.inference.device import autocast_dtype
from medseg.inference.memory import Setup
from medseg.inference.products import Spread
from medseg.inference.volume import Volume
from medseg.inference.windows import Tiling, Triple

Network = Callable[[Tensor], Tensor]
_log = logging.getLogger(__name__)


class Members:
    """Networks that share a plan, as one.

    Args:
        networks: Tiles (N, C, *patch) to logits (N, classes, *patch).
        plan: Its mirrored views are run too.
        device: Where they run.
        spread: Give one channel more: how far members and views disagree.
    """

    def __init__(
        self, networks: Sequence[Network], plan: Plan, device: torch.device, *, spread: bool
    ) -> None:
        self.networks, self.plan, self._spread = networks, plan, spread
        self._half = autocast_dtype(device)

    def __call__(self, tiles: Tensor) -> Tensor:
        """Mean logits (N, classes, ...) float32 of tiles (N, C, ...)."""
        views = _subsets(self.plan.inference.mirror_axes)
        half = torch.autocast(tiles.device.type, self._half) if self._half else nullcontext()
        total: Tensor | None = None
        count = len(self.networks) * len(views)
        variance = Spread(softmax=self.plan.activation == "softmax") if self._spread else None
        with half:
            for network in self.networks:
                for number, axes in enumerate(views):
                    seen = self._view(network, tiles, axes)
                    if variance is not None:
                        variance.add(seen)
                    # The first may be memory of the network's own, so the second makes a sum.
                    if total is None:
                        total = seen
                    elif number == 1 or len(views) == 1:
                        total = total + seen
                    else:
                        total.add_(seen)
        assert total is not None
        mean = total if count == 1 else total.div_(count)
        return mean if variance is None else torch.cat([mean, variance.variance()], dim=1)

    def _view(
        self, network: Callable[[Tensor], Tensor], tiles: Tensor, axes: Sequence[int]
    ) -> Tensor:
        """Logits of one mirrored view, turned back."""
        if not axes:
            return network(tiles).float()
        dims = [axis + 2 for axis in axes]
        seen = network(tiles.flip(dims)).float().flip(dims)
        exchanged = mirrored_channels(self.plan, axes)
        return seen if exchanged is None else seen[:, exchanged]


class Tiles:
    """The logits of each window in turn, computed several at a time."""

    def __init__(
        self, volume: Volume, tiling: Tiling, setup: Setup, forward: Callable[[Tensor], Tensor]
    ) -> None:
        self.volume, self.tiling, self.setup, self.forward = volume, tiling, setup, forward
        self.batch, self.skipped = setup.batch, 0
        self._value: tuple[float, ...] | None = None
        self._kept = torch.empty(0)

    def __iter__(self) -> Iterator[tuple[Triple, Tensor]]:
        windows: list[tuple[Triple, int]] = []
        tiles: list[Tensor] = []
        values: dict[tuple[float, ...], int] = {}
        for window in self.tiling:
            tile = self._read(window)
            value = _value_of(tile) if self.setup.skip_air else None
            if value is not None and (value == self._value or value in values):
                self.skipped += 1
                windows.append((window, values.get(value, -1)))
                continue
            if value is not None:
                values[value] = len(tiles)
            windows.append((window, len(tiles)))
            tiles.append(tile)
            if len(tiles) >= self.batch:
                yield from self._results(windows, tiles, values)
                windows, tiles, values = [], [], {}
        yield from self._results(windows, tiles, values)

    def _results(
        self,
        windows: Sequence[tuple[Triple, int]],
        tiles: Sequence[Tensor],
        values: Mapping[tuple[float, ...], int],
    ) -> Iterator[tuple[Triple, Tensor]]:
        logits: list[Tensor] = []
        while len(logits) < len(tiles):
            group = torch.stack(list(tiles[len(logits) : len(logits) + self.batch]))
            try:
                logits += self.forward(group.to(self.setup.device)).unbind()
            except torch.OutOfMemoryError:
                self._halve()
        for window, place in windows:
            # Below 0: the value of a tile before, whose logits are kept.
            yield window, self._kept if place < 0 else logits[place]
        if values:
            self._value, place = next(iter(values.items()))
            self._kept = logits[place].clone()

    def _halve(self) -> None:
        if self.batch == 1:
            raise ResourceError(
                f"memory of {self.setup.device}",
                expected="room for one tile",
                got="out of memory",
                cure="Close what else uses the device, or use --device cpu.",
            ) from None
        self.batch //= 2
        _log.warning("out of memory on %s: %d tiles at a time now", self.setup.device, self.batch)
        if self.setup.device.type == "cuda":
            torch.cuda.empty_cache()

    def _read(self, window: Triple) -> Tensor:
        """(C, *patch) float32 with zeros beyond the volume."""
        tile = self.volume.read(self.tiling.inside(window))
        gaps = self.tiling.gaps
        if not any(side for gap in gaps for side in gap):
            return tile
        # torch lists the last axis first.
        return pad(tile, [side for gap in reversed(gaps) for side in gap])


def mirrored_channels(plan: Plan, axes: Sequence[int]) -> list[int] | None:
    """Which channel stands where after mirroring; None where none moves.

    Args:
        plan: Its left-right pairs move in views mirrored along the patient's left-right axis.
        axes: The working axes of a view.
    """
    pairs = plan.inference.left_right_pairs
    if not pairs or plan.orientation != "ras" or plan.axis_order.index(0) not in axes:
        return None
    names, first = plan.labels.names, int(plan.activation == "softmax")
    channels = list(range(plan.network.classes))
    for left, right in pairs:
        a, b = names.index(left) + first, names.index(right) + first
        channels[a], channels[b] = channels[b], channels[a]
    return channels


def _value_of(tile: Tensor) -> tuple[float, ...] | None:
    """The one value of each channel; None where a channel holds several."""
    low, high = tile.flatten(1).aminmax(dim=1)
    return tuple(low.tolist()) if torch.equal(low, high) else None


def _subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    every: Iterator[tuple[int, ...]] = chain.from_iterable(
        combinations(axes, count) for count in range(len(axes) + 1)
    )
    return list(every)
