"""Batches as a pure function of (seed, step): any worker, any time, the same patches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.core.plan import Plan
from medseg.training.cache import CachedCase
from medseg.training.sampling import ClassSampler, Spot
from medseg.training.targets import IGNORED, Targets
from medseg.transforms.augment import Variation, draw_variation
from medseg.transforms.augment_earlier import EarlierFaults, draw_faults, with_faults
from medseg.transforms.augment_space import needed_box, sample_patch
from medseg.transforms.augment_values import vary_intensity

_AHEAD = 3


@dataclass(frozen=True)
class Draw:
    """What chance decided for one sample: which case, where, and how it is varied.

    Attributes:
        case: Index of the case.
        centre: (3,) centre of the patch in voxels of the case.
        variation: Rotation, intensity and so on.
        blank: Channels that are 0: the case has no image of them, or chance left them out.
        faults: Of the labels of a cascade's first stage; None without one.
    """

    case: int
    centre: NDArray[np.float64]
    variation: Variation
    blank: tuple[int, ...] = ()
    faults: EarlierFaults | None = None


@dataclass(frozen=True)
class _Box:
    """The voxels that one patch needs, read but not yet resampled."""

    image: Tensor
    label: Tensor
    centre: NDArray[np.float64]
    earlier: Tensor | None = None

    @property
    def parts(self) -> list[Tensor]:
        """What is resampled."""
        return [self.image, self.label, *(() if self.earlier is None else (self.earlier,))]


@dataclass(frozen=True)
class Portion:
    """Which samples of a step a process takes, and how many parts they come in.

    A step has ``batch_size * processes * parts`` samples. What chance decides for each of them
    depends on its number in the step alone, so that other processes and parts that make as many
    samples learn from the same ones.

    Attributes:
        process: Whose samples.
        processes: That share a step.
        parts: Batches of each process that make one step.
    """

    process: int = 0
    processes: int = 1
    parts: int = 1


class Batches:
    """Training batches of a plan over cached cases.

    Args:
        cases: At least one.
        plan: Patch, batch size, augmentation.
        seed: With the step it decides every draw.
        device: Where patches are resampled and varied, the whole batch at once.
        workers: Threads that read ahead; 0 reads when asked (best on a CPU that also trains).
        portion: Of each step.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        plan: Plan,
        *,
        seed: int,
        device: torch.device,
        workers: int = 0,
        portion: Portion | None = None,
    ) -> None:
        self.cases, self.plan, self.seed = list(cases), plan, seed
        self.portion = portion or Portion()
        self.device, self.workers = device, workers
        self.waited_s = 0.0
        self._spacing = np.array([side or 1.0 for side in plan.spacing_mm])
        self._sideways = plan.axis_order.index(0)
        self._sampler = ClassSampler(self.cases, plan)
        self._partly = any(case.known is not None for case in self.cases)
        scheme = plan.scheme
        # What an index becomes, as it is and where left and right are exchanged.
        tables = [np.arange(scheme.indices), scheme.mirrored(plan.inference.left_right_pairs)]
        if scheme.ignored is not None:
            tables = [np.where(table == scheme.ignored, IGNORED, table) for table in tables]
        self._tables = [torch.from_numpy(table).to(device) for table in tables]
        self._earlier = [table.to(device) for table in _earlier_tables(plan)]

    @property
    def step_size(self) -> int:
        """Samples of a step, of all processes and parts."""
        lot = self.portion
        return self.plan.training.batch_size * lot.processes * lot.parts

    def draw(self, step: int, part: int = 0) -> list[Draw]:
        """Decide the samples of a part of a step."""
        lot = self.portion
        size = self.plan.training.batch_size
        # Dealt out in turn: the last samples of a step hold foreground, and each part needs some.
        numbers = [(n * lot.parts + part) * lot.processes + lot.process for n in range(size)]
        return [self._draw_sample(step, number) for number in numbers]

    def batch(self, step: int, part: int = 0) -> tuple[Tensor, Targets]:
        """Images (N, C, *patch) float32 of a part of a step, and their truth."""
        draws = self.draw(step, part)
        return self._finish(draws, [self._read(draw) for draw in draws])

    def iterate(self, first_step: int) -> Generator[tuple[Tensor, Targets]]:
        """Batches from a step on, part by part, without end.

        Time spent waiting adds up in ``waited_s``.
        """
        places = ((step, part) for step in count(first_step) for part in range(self.portion.parts))
        if self.workers > 0:
            yield from self._iterate_ahead(places)
        for step, part in places:
            started = time.perf_counter()
            ready = self.batch(step, part)
            self.waited_s += time.perf_counter() - started
            yield ready

    def _iterate_ahead(
        self, places: Iterator[tuple[int, int]]
    ) -> Generator[tuple[Tensor, Targets]]:
        with ThreadPoolExecutor(self.workers) as pool:
            queue: deque[tuple[list[Draw], list[Future[_Box]]]] = deque()
            while True:
                while len(queue) < _AHEAD:
                    draws = self.draw(*next(places))
                    queue.append((draws, [pool.submit(self._read, draw) for draw in draws]))
                draws, futures = queue.popleft()
                started = time.perf_counter()
                boxes = [future.result() for future in futures]
                self.waited_s += time.perf_counter() - started
                yield self._finish(draws, boxes)

    def _draw_sample(self, step: int, sample: int) -> Draw:
        training = self.plan.training
        rng = np.random.default_rng([self.seed, step, sample])
        index = self._case_at(step * self.step_size + sample)
        variation = draw_variation(
            rng,
            training.augmentation,
            spatial_dims=self.plan.network.spatial_dims,
            spacing=self._spacing,
        )
        low, high = self._reach(index)
        start = rng.integers(low, high, endpoint=True)
        spot = self._spot(rng, index, sample)
        patch = np.array(self.plan.patch_size)
        if spot is not None:
            index = spot.case
            start = np.clip(spot.voxel - patch // 2, *self._reach(index))
        blank = self._blank(index, step, sample)
        faults = None
        if self.plan.cascade_labels:
            # A generator of its own, as for channels that are left out.
            own = np.random.default_rng([self.seed, step, sample, 2])
            faults = draw_faults(own, self.plan.cascade_labels)
        return Draw(index, start + (patch - 1) / 2, variation, blank, faults)

    def _reach(self, case: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last place where a patch of a case may start."""
        over = np.array(self.cases[case].label.shape) - np.array(self.plan.patch_size)
        return np.minimum(0, over), np.maximum(0, over)

    def _spot(self, rng: np.random.Generator, case: int, sample: int) -> Spot | None:
        """What the patch is centred on; None for anywhere."""
        if self._wants_foreground(rng, sample):
            spot = self._sampler.foreground(rng, case)
            if spot is not None:
                return spot
        return self._sampler.anywhere(rng, case)

    def _blank(self, case: int, step: int, sample: int) -> tuple[int, ...]:
        """Channels that are left out of a sample; one that is there always stays."""
        missing, share = self.cases[case].missing, self.plan.training.channel_dropout
        there = [n for n in range(len(self.plan.channels)) if n not in missing]
        if share == 0 or len(there) < 2:
            return missing
        # A generator of its own, so that other draws are the same with and without.
        rng = np.random.default_rng([self.seed, step, sample, 1])
        stays = there[rng.integers(len(there))]
        out = [n for n in there if rng.random() < share and n != stays]
        return tuple(sorted((*missing, *out)))

    def _wants_foreground(self, rng: np.random.Generator, sample: int) -> bool:
        """The last samples of a step, so that each step holds its share; one alone by chance."""
        size, share = self.step_size, self.plan.training.foreground_share
        if size == 1:
            return bool(rng.random() < share)
        return sample >= size - round(size * share)

    def _case_at(self, number: int) -> int:
        """The n-th case ever drawn: each case once per round, each round in its own order."""
        round_number, place = divmod(number, len(self.cases))
        order = np.random.default_rng([self.seed, round_number]).permutation(len(self.cases))
        return int(order[place])

    def _read(self, draw: Draw) -> _Box:
        case = self.cases[draw.case]
        low, high = needed_box(draw.centre, draw.variation, self.plan.patch_size)
        size = np.array(case.label.shape)
        low, high = np.clip(low, 0, size - 1), np.clip(high, 1, size)
        cut = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        image = torch.from_numpy(np.array(case.image[:, *cut]))
        label = torch.from_numpy(_small(case.label[cut]))[None]
        earlier = None
        if case.earlier is not None and draw.faults is not None:
            faulty = with_faults(_small(case.earlier[cut]), draw.faults)
            earlier = torch.from_numpy(faulty)[None]
        box = _Box(image, label, draw.centre - low, earlier)
        if self.device.type != "cuda":
            return box
        return _Box(
            image.pin_memory(), label.pin_memory(), box.centre,
            None if earlier is None else earlier.pin_memory(),
        )  # fmt: skip

    def _finish(self, draws: list[Draw], boxes: list[_Box]) -> tuple[Tensor, Targets]:
        images, labels, coarse = [], [], []
        for draw, box in zip(draws, boxes, strict=True):
            image, label, *earlier = sample_patch(
                [part.to(self.device, non_blocking=True) for part in box.parts],
                box.centre,
                draw.variation,
                patch=self.plan.patch_size,
                nearest=(False, True, True)[: len(box.parts)],
            )
            images.append(image)
            labels.append(self._tables[self._exchanged(draw)][label[0].long()])
            coarse += [self._earlier[self._exchanged(draw)][part.long()] for part in earlier]
        batch = vary_intensity(torch.stack(images), [draw.variation for draw in draws])
        for number, draw in enumerate(draws):
            batch[number, list(draw.blank)] = 0
        if coarse:
            numbers = torch.arange(1, self.plan.cascade_labels + 1, device=self.device)
            hot = torch.stack(coarse) == numbers[:, None, None, None]
            batch = torch.cat([batch, hot.to(batch.dtype)], dim=1)
        return batch, Targets(torch.stack(labels), self._known(draws))

    def _exchanged(self, draw: Draw) -> bool:
        return self._sideways in draw.variation.mirrored

    def _known(self, draws: list[Draw]) -> Tensor | None:
        """(N, labels) bool; None where every case knows all."""
        if not self._partly:
            return None
        names, rows = self.plan.labels.names, []
        for draw in draws:
            known = self.cases[draw.case].known or (True,) * len(names)
            row = dict(zip(names, known, strict=True))
            for left, right in self.plan.inference.left_right_pairs:
                if self._exchanged(draw):
                    row[left], row[right] = row[right], row[left]
            rows.append([row[name] for name in names])
        return torch.tensor(rows, device=self.device)


def _earlier_tables(plan: Plan) -> list[Tensor]:
    """What a label of a cascade's first stage becomes, as it is and where sides are exchanged."""
    # One beyond the last stands for voxels that were not scanned.
    same = torch.arange(plan.cascade_labels + 2)
    turned, names = same.clone(), plan.labels.names
    for pair in plan.inference.left_right_pairs if plan.cascade_labels else ():
        left, right = (names.index(name) + 1 for name in pair)
        turned[left], turned[right] = right, left
    return [same, turned]


def _small(label: NDArray[Any]) -> NDArray[Any]:
    """Class indices as torch can take them: uint8, or int32 where there are more."""
    return np.array(label, dtype=np.uint8 if label.dtype == np.uint8 else np.int32)
