"""Run one or several networks over a whole scan and bring the labels back to its grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, combinations
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from medseg.core.geometry import Geometry
from medseg.core.plan import Plan
from medseg.core.scan import Scan
from medseg.inference.backends import Backend
from medseg.inference.device import autocast_dtype, tiles_at_once
from medseg.inference.windows import gaussian_weights, padding, windows
from medseg.transforms.preprocess import preprocess_scan
from medseg.transforms.restore import restore_classes

Triple = tuple[int, int, int]
Grid = Literal["own", "regular", "source"]


class Predictor:
    """Networks that share a plan, ready to segment scans. Holds no state of a scan.

    Safe to use from several threads: nothing is changed after it is made.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module | Backend],
        plan: Plan,
        device: torch.device,
        *,
        batch: int | None = None,
    ) -> None:
        # A plain module runs as it is; a backend stands on its device already.
        self.networks: Sequence[Callable[[Tensor], Tensor]] = [
            network.to(device).eval() if isinstance(network, nn.Module) else network
            for network in networks
        ]
        self.plan, self.device = plan, device
        self.batch = tiles_at_once(device) if batch is None else batch
        self._half = autocast_dtype(device)
        self._weights = torch.from_numpy(
            gaussian_weights(plan.patch_size, plan.inference.gaussian_sigma)
        ).to(device)

    def segment(self, scan: Scan, *, grid: Grid = "own") -> tuple[NDArray[Any], Geometry]:
        """Class indices (I, J, K), before post-processing, and the grid that they lie on.

        Args:
            scan: Read by any reader.
            grid: ``"own"`` for the scan's; ``"regular"``, of a sheared scan, for the grid at
                right angles that covers it; ``"source"``, of a scan whose uneven slices were
                bridged, for one plane per original slice.
        """
        voxels, record = preprocess_scan(scan, self.plan)
        if grid == "regular" and not scan.geometry.is_regular:
            record = record.onto_cover()
        elif grid == "source" and scan.slices is not None:
            record = record.onto_slices(scan.slices)
        return restore_classes(self.logits(voxels), record), record.target

    @torch.inference_mode()
    def logits(self, voxels: Tensor) -> Tensor:
        """Mean logits of all members over overlapping windows.

        Args:
            voxels: (C, I, J, K) float32 on the plan's grid.

        Returns:
            (classes, I, J, K) float32 on this predictor's device.
        """
        patch, size = self.plan.patch_size, tuple(voxels.shape[1:])
        shape = (int(size[0]), int(size[1]), int(size[2]))
        gaps = padding(shape, patch)
        # torch lists the last axis first.
        padded = pad(voxels, [side for gap in reversed(gaps) for side in gap]).to(self.device)
        whole = (int(padded.shape[1]), int(padded.shape[2]), int(padded.shape[3]))
        starts = windows(whole, patch, self.plan.inference.step)
        total = torch.zeros((self.plan.network.classes, *whole), device=self.device)
        weight = torch.zeros(whole, device=self.device)
        for group in (starts[n : n + self.batch] for n in range(0, len(starts), self.batch)):
            tiles = torch.stack([padded[:, *_cut(start, patch)] for start in group])
            for start, tile in zip(group, self._forward(tiles), strict=True):
                place = _cut(start, patch)
                total[:, *place] += tile * self._weights
                weight[place] += self._weights
        total /= weight
        return total[:, *_cut((gaps[0][0], gaps[1][0], gaps[2][0]), shape)]

    def _forward(self, tiles: Tensor) -> Tensor:
        """Mean logits (N, classes, ...) over members and mirrored views, float32."""
        views = _subsets(self.plan.inference.mirror_axes)
        half = torch.autocast(self.device.type, self._half) if self._half else nullcontext()
        total: Tensor | None = None
        with half:
            for network in self.networks:
                for axes in views:
                    dims = [axis + 2 for axis in axes]
                    seen = network(tiles.flip(dims)).float().flip(dims)
                    total = seen if total is None else total + seen
        assert total is not None
        return total / (len(self.networks) * len(views))


def _cut(start: Triple, size: Triple) -> tuple[slice, slice, slice]:
    a, b, c = (slice(first, first + side) for first, side in zip(start, size, strict=True))
    return a, b, c


def _subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    every: Iterator[tuple[int, ...]] = chain.from_iterable(
        combinations(axes, count) for count in range(len(axes) + 1)
    )
    return list(every)
