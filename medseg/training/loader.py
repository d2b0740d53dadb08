"""Batches as a pure function of (seed, step): any worker, any time, the same patches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.core.plan import Plan
from medseg.training.cache import CachedCase
from medseg.transforms.augment import (
    Variation,
    draw_variation,
    needed_box,
    sample_patch,
    vary_intensity,
)

_AHEAD = 3


@dataclass(frozen=True)
class Draw:
    """What chance decided for one sample: which case, where, and how it is varied.

    Attributes:
        case: Index of the case.
        centre: (3,) centre of the patch in voxels of the case.
        variation: Rotation, intensity and so on.
    """

    case: int
    centre: NDArray[np.float64]
    variation: Variation


@dataclass(frozen=True)
class _Box:
    """The voxels that one patch needs, read but not yet resampled."""

    image: Tensor
    label: Tensor
    centre: NDArray[np.float64]


class Batches:
    """Training batches of a plan over cached cases.

    Args:
        cases: At least one.
        plan: Patch, batch size, augmentation.
        seed: With the step it decides every draw.
        device: Where patches are resampled and varied, the whole batch at once.
        workers: Threads that read ahead; 0 reads when asked (best on a CPU that also trains).
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        plan: Plan,
        *,
        seed: int,
        device: torch.device,
        workers: int = 0,
    ) -> None:
        self.cases, self.plan, self.seed = list(cases), plan, seed
        self.device, self.workers = device, workers
        self.waited_s = 0.0
        self._spacing = np.array([side or 1.0 for side in plan.spacing_mm])

    def draw(self, step: int) -> list[Draw]:
        """Decide all samples of a step."""
        return [self._draw_sample(step, n) for n in range(self.plan.training.batch_size)]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (N, C, *patch) float32 and labels (N, *patch) int64 of a step."""
        draws = self.draw(step)
        return self._finish(draws, [self._read(draw) for draw in draws])

    def iterate(self, first_step: int) -> Generator[tuple[Tensor, Tensor]]:
        """Batches from a step on, without end; time spent waiting adds up in ``waited_s``."""
        if self.workers == 0:
            step = first_step
            while True:
                started = time.perf_counter()
                ready = self.batch(step)
                self.waited_s += time.perf_counter() - started
                yield ready
                step += 1
        yield from self._iterate_ahead(first_step)

    def _iterate_ahead(self, first_step: int) -> Generator[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(self.workers) as pool:
            queue: deque[tuple[list[Draw], list[Future[_Box]]]] = deque()
            step = first_step
            while True:
                while len(queue) < _AHEAD:
                    draws = self.draw(step)
                    queue.append((draws, [pool.submit(self._read, draw) for draw in draws]))
                    step += 1
                draws, futures = queue.popleft()
                started = time.perf_counter()
                boxes = [future.result() for future in futures]
                self.waited_s += time.perf_counter() - started
                yield self._finish(draws, boxes)

    def _draw_sample(self, step: int, sample: int) -> Draw:
        training = self.plan.training
        rng = np.random.default_rng([self.seed, step, sample])
        index = self._case_at(step * training.batch_size + sample)
        case = self.cases[index]
        variation = draw_variation(
            rng,
            training.augmentation,
            spatial_dims=self.plan.network.spatial_dims,
            spacing=self._spacing,
        )
        patch, size = np.array(self.plan.patch_size), np.array(case.label.shape)
        low, high = np.minimum(0, size - patch), np.maximum(0, size - patch)
        start = rng.integers(low, high, endpoint=True)
        if self._wants_foreground(rng, sample) and case.places:
            classes = sorted(case.places)
            voxels = case.places[classes[rng.integers(len(classes))]]
            start = np.clip(voxels[rng.integers(len(voxels))] - patch // 2, low, high)
        return Draw(index, start + (patch - 1) / 2, variation)

    def _wants_foreground(self, rng: np.random.Generator, sample: int) -> bool:
        """The last samples of a batch, so that each batch holds its share; one alone by chance."""
        count, share = self.plan.training.batch_size, self.plan.training.foreground_share
        if count == 1:
            return bool(rng.random() < share)
        return sample >= count - round(count * share)

    def _case_at(self, number: int) -> int:
        """The n-th case ever drawn: each case once per round, each round in its own order."""
        round_number, place = divmod(number, len(self.cases))
        order = np.random.default_rng([self.seed, round_number]).permutation(len(self.cases))
        return int(order[place])

    def _read(self, draw: Draw) -> _Box:
        case = self.cases[draw.case]
        low, high = needed_box(draw.centre, draw.variation.matrix, self.plan.patch_size)
        size = np.array(case.label.shape)
        low, high = np.clip(low, 0, size - 1), np.clip(high, 1, size)
        cut = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        image = torch.from_numpy(np.array(case.image[:, *cut]))
        label = torch.from_numpy(np.array(case.label[cut], dtype=np.float32))[None]
        if self.device.type == "cuda":
            image, label = image.pin_memory(), label.pin_memory()
        return _Box(image, label, draw.centre - low)

    def _finish(self, draws: list[Draw], boxes: list[_Box]) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for draw, box in zip(draws, boxes, strict=True):
            patch: dict[str, Any] = {"patch": self.plan.patch_size}
            matrix = draw.variation.matrix
            image = box.image.to(self.device, non_blocking=True)
            label = box.label.to(self.device, non_blocking=True)
            moved = sample_patch(image, box.centre, matrix, **patch)
            images.append(vary_intensity(moved, draw.variation))
            labels.append(sample_patch(label, box.centre, matrix, nearest=True, **patch)[0])
        return torch.stack(images), torch.stack(labels).long()
