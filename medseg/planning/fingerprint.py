"""Read the training cases once and note what a plan needs to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Semaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Orientation
from medseg.core.label_scheme import LabelScheme
from medseg.core.labels import LabelSet, left_right_pairs
from medseg.core.plan import ChannelFacts, Fingerprint, Triple
from medseg.core.scan import Scan
from medseg.datasets.dataset import Case, Dataset
from medseg.datasets.reading import read_case_image, read_case_mask

_SAMPLES_PER_CASE = 20_000
_PLACED_PER_CASE = 400_000
_LOOKS_AT_ONCE = 2
# On an axis this much coarser than the finest, the median would throw away the finer scans.
ANISOTROPIC = 3.0
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _CaseFacts:
    shape: Triple
    spacing_mm: tuple[float, float, float]
    flat: bool
    foreground: NDArray[np.float32]
    zero_share: NDArray[np.float64]
    class_counts: NDArray[np.int64]
    places: NDArray[np.float64]


class CaseLook:
    """Takes from cases that are read anyway what a fingerprint needs of them.

    It may be called by several threads.

    Args:
        dataset: For regions and the value to be ignored.
        cases: Those to look at; others are passed over.
        labels: The labels to learn.
    """

    def __init__(self, dataset: Dataset, cases: Sequence[Case], labels: LabelSet) -> None:
        self.scheme = LabelScheme(labels, regions=bool(dataset.regions), ignore=dataset.ignore)
        self.facts: dict[str, _CaseFacts] = {}
        self._wanted = {case.id for case in cases}
        # Looking takes several times the memory of a case.
        self._turns = Semaphore(_LOOKS_AT_ONCE)

    def __call__(self, case: Case, scan: Scan, voxels: NDArray[Any], mask: NDArray[Any]) -> None:
        """Look at a case: its scan, voxels (C, I, J, K) and mask (I, J, K)."""
        if case.id in self._wanted:
            self.take(case, scan, voxels, mask)

    def take(self, case: Case, scan: Scan, voxels: NDArray[Any], mask: NDArray[Any]) -> None:
        """The same, wanted or not."""
        with self._turns:
            self.facts[case.id] = _facts_of(scan, voxels, mask, self.scheme)


def take_fingerprint(
    dataset: Dataset,
    cases: Sequence[Case],
    labels: LabelSet,
    *,
    workers: int = _LOOKS_AT_ONCE,
    progress: Progress | None = None,
    seen: CaseLook | None = None,
) -> Fingerprint:
    """Spacing, shape, intensities and label sizes over cases, in RAS+ axis order.

    Args:
        dataset: For channel names and modalities.
        cases: Training cases alone: nothing of a validation case may shape the plan.
        labels: The labels to learn, with the mask values that each unites.
        workers: Threads that read.
        progress: Called with (done, total, case id).
        seen: Of the same labels; cases that it has looked at are not read again.
    """
    facts: list[_CaseFacts] = []
    look = seen or CaseLook(dataset, cases, labels)
    scheme = look.scheme

    def one_of(case: Case) -> _CaseFacts:
        if case.id not in look.facts:
            scan = read_case_image(case)
            look.take(case, scan, scan.voxels(), read_case_mask(case)[0])
        return look.facts[case.id]

    with ThreadPoolExecutor(max_workers=workers) as pool:
        for case, one in zip(cases, pool.map(one_of, cases), strict=True):
            facts.append(one)
            if progress is not None:
                progress(len(facts), len(cases), case.id)
    spacing = np.array([one.spacing_mm for one in facts])
    shapes = np.array([one.shape for one in facts])
    counts = np.array([one.class_counts for one in facts])
    total = max(1, sum(int(np.prod(one.shape)) for one in facts))
    median_mm, low_mm = np.median(spacing, axis=0), np.percentile(spacing, 10, axis=0)
    middle, largest = np.median(shapes, axis=0), shapes.max(axis=0)
    return Fingerprint(
        cases=len(facts),
        two_dimensional=all(one.flat for one in facts),
        median_spacing_mm=_floats(median_mm),
        low_spacing_mm=_floats(low_mm),
        median_shape=_ints(middle),
        max_shape=_ints(largest),
        channels=_channel_facts(dataset, facts),
        label_voxel_share={
            name: float(counts[:, index].sum() / total) for index, name in enumerate(labels.names)
        },
        label_cases={
            name: int((counts[:, index] > 0).sum()) for index, name in enumerate(labels.names)
        },
        regions=scheme.regions,
        ignore=scheme.ignore,
        **_place_facts(labels, facts),
    )


def _facts_of(
    scan: Scan, voxels: NDArray[Any], mask: NDArray[Any], scheme: LabelScheme
) -> _CaseFacts:
    indices = scheme.to_indices(mask)
    classes = scheme.painted(indices)
    counts = np.bincount(indices.ravel(), minlength=scheme.indices)
    orientation = scan.geometry.orientation_to_ras()
    turned = scan.geometry.reoriented(orientation)
    where = np.flatnonzero(classes)
    # Evenly spaced picks: a sample without chance, the same on every machine.
    picks = where[:: max(1, -(-where.size // _SAMPLES_PER_CASE))]
    flat = voxels.reshape(voxels.shape[0], -1)
    return _CaseFacts(
        shape=turned.shape,
        spacing_mm=turned.spacing_mm,
        flat=turned.shape[2] == 1,
        foreground=_told(flat[:, picks].astype(np.float32), scan.missing),
        zero_share=_told(1 - np.count_nonzero(flat, axis=1) / flat.shape[1], scan.missing),
        class_counts=counts @ scheme.membership,
        places=_places(classes, where, orientation, labels=len(scheme.labels)),
    )


def _told(figures: NDArray[Any], missing: tuple[int, ...]) -> NDArray[Any]:
    """Figures by channel; NaN for those that the case has no image of."""
    figures[list(missing)] = np.nan
    return figures


def _places(
    classes: NDArray[Any], where: NDArray[Any], orientation: Orientation, *, labels: int
) -> NDArray[np.float64]:
    """(labels, 3) centroids along R, A and S, as shares of the field of view; NaN if absent."""
    picks = where[:: max(1, -(-where.size // _PLACED_PER_CASE))]
    found = classes.ravel()[picks]
    counts = np.bincount(found, minlength=labels + 1).astype(np.float64)[1 : labels + 1]
    counts[counts == 0] = np.nan
    index = np.unravel_index(picks, classes.shape)
    result = np.empty((labels, 3))
    for axis, (source, flip) in enumerate(zip(orientation.axes, orientation.flips, strict=True)):
        sums = np.bincount(found, weights=index[source], minlength=labels + 1)[1 : labels + 1]
        share = (sums / counts + 0.5) / classes.shape[source]
        result[:, axis] = 1 - share if flip else share
    return result


def _place_facts(labels: LabelSet, facts: list[_CaseFacts]) -> dict[str, Any]:
    """Where labels lie, and on which side of each other those of a pair do."""
    places = np.array([one.places for one in facts])
    shown = np.isfinite(places[..., 0])
    middles, spreads, sides = {}, {}, {}
    for index, name in enumerate(labels.names):
        own = places[shown[:, index], index]
        if len(own):
            middles[name], spreads[name] = _floats(own.mean(axis=0)), _floats(own.std(axis=0))
    for left, right in left_right_pairs(labels):
        a, b = labels.names.index(left), labels.names.index(right)
        both = shown[:, a] & shown[:, b] & ~np.array([one.flat for one in facts])
        if both.any():
            sides[left] = float((places[both, a, 0] < places[both, b, 0]).mean())
    return {"label_places": middles, "label_place_spread": spreads, "pair_sides": sides}


def _channel_facts(dataset: Dataset, facts: list[_CaseFacts]) -> tuple[ChannelFacts, ...]:
    values = np.concatenate([one.foreground for one in facts], axis=1)
    zeros = np.array([one.zero_share for one in facts])
    rows = []
    named = zip(dataset.channels, dataset.modalities, strict=True)
    for index, (name, modality) in enumerate(named):
        own, empty = _finite(values[index]), _finite(zeros[:, index])
        low, high = np.percentile(own, [0.5, 99.5])
        rows.append(
            ChannelFacts(
                name=name,
                modality=modality,
                foreground_mean=float(own.mean(dtype=np.float64)),
                foreground_std=float(own.std(dtype=np.float64)),
                percentile_00_5=float(low),
                percentile_99_5=float(high),
                zero_share=float(empty.mean()),
            )
        )
    return tuple(rows)


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """Those that are no NaN; a single 0 where none is left."""
    kept = values[np.isfinite(values)]
    return kept if kept.size else np.zeros(1, dtype=values.dtype)


def _floats(values: NDArray[Any]) -> tuple[float, float, float]:
    a, b, c = (float(value) for value in values)
    return a, b, c


def _ints(values: NDArray[Any]) -> Triple:
    a, b, c = (int(np.ceil(value)) for value in values)
    return a, b, c
