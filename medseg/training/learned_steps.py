"""Which post-processing steps raise the Dice of predictions that were not trained on.

For each label by itself: keep the largest region, remove regions below a volume, or both; then
fill holes. A step is kept where its mean gain over the cases is beyond its bootstrap noise. In
a case that has the label in neither mask the Dice counts as 1 here, so that removing what is
wrong altogether counts as a gain, and removing what is right as a loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import PostprocessStep
from medseg.evaluation.masks import check_shapes
from medseg.evaluation.overlap import overlap_counts
from medseg.evaluation.statistics import bootstrap_interval
from medseg.postprocess.chain import apply_chain
from medseg.postprocess.components import find_parts
from medseg.postprocess.shapes import fill_holes

_LOG = logging.getLogger(__name__)
LEAST_CASES = 5
"""Fewer cases with a label say nothing of how cases vary."""
# A gain below this is rounding, not cleaning.
_LEAST_GAIN = 1e-4
# Shares of the false regions that a least volume is to remove.
_SHARES = (0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class HeldOutPair:
    """A prediction of a case that was not trained on, and its reference.

    Attributes:
        prediction: (I, J, K) mask values.
        reference: Of the same shape.
        geometry: Their grid; None where it is not known, and then volumes are not learned.
    """

    prediction: NDArray[Any]
    reference: NDArray[Any]
    geometry: Geometry | None


@dataclass(frozen=True)
class _Regions:
    """The regions of one label in one case.

    Attributes:
        sizes: (N,) voxels of each.
        right: (N,) how many of them have the label in the reference, too.
        wanted: Voxels of the reference.
        voxel_mm3: Volume of a voxel; None where it is not known.
    """

    sizes: NDArray[np.int64]
    right: NDArray[np.int64]
    wanted: int
    voxel_mm3: float | None

    def kept(self, rule: _Rule) -> NDArray[np.bool_]:
        """(N,) which regions a rule keeps."""
        kept = np.ones(self.sizes.size, dtype=np.bool_)
        if rule.largest and self.sizes.size:
            kept = np.arange(self.sizes.size) == int(self.sizes.argmax())
        if rule.volume_mm3 is not None and self.voxel_mm3 is not None:
            kept &= self.sizes * self.voxel_mm3 >= rule.volume_mm3 * (1 - 1e-9)
        return kept

    def dice(self, rule: _Rule) -> float:
        """The Dice of what a rule leaves."""
        kept = self.kept(rule)
        return _dice(int(self.right[kept].sum()), int(self.sizes[kept].sum()), self.wanted)


@dataclass(frozen=True)
class _Rule:
    """Which regions of a label stay."""

    largest: bool = False
    volume_mm3: float | None = None


@dataclass(frozen=True)
class _Gain:
    """What a step changes in the mean Dice, and how sure that is."""

    before: float
    after: float
    low: float
    high: float
    cases: int

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> _Gain:
        low, high = bootstrap_interval(np.subtract(after, before))
        return cls(float(np.mean(before)), float(np.mean(after)), low, high, len(before))

    @property
    def mean(self) -> float:
        return self.after - self.before

    @property
    def is_sure(self) -> bool:
        return self.cases >= LEAST_CASES and self.mean > _LEAST_GAIN and self.low > 0

    @property
    def text(self) -> str:
        return (
            f"mean Dice {self.before:.4f} -> {self.after:.4f} on {self.cases} cases that were "
            f"not trained on: gain {self.mean:.4f}, 95 % interval {self.low:.4f} to {self.high:.4f}"
        )


def learn_steps(
    pairs: Callable[[], Iterable[HeldOutPair]], labels: LabelSet
) -> tuple[PostprocessStep, ...]:
    """Choose the steps that raise the Dice of held-out predictions beyond its noise.

    Noise is the 95 % bootstrap interval over cases of the mean paired gain: its lower end must
    be above 0, and the gain above 0.0001. Least volumes lie half-way, on a scale of ratios,
    between a false region and the next larger right one.

    Args:
        pairs: Gives all cases, and gives them again where holes are looked at. Predictions must
            be as the network made them.
        labels: Of both masks.

    Returns:
        The chain, each step with its evidence; none for labels in fewer than five cases.
    """
    regions: dict[int, list[_Regions]] = {value: [] for value in labels.values}
    for pair in pairs():
        for value, found in _regions(pair, labels.values):
            regions[value].append(found)
    few = [label.name for label in labels.labels if len(regions[label.value]) < LEAST_CASES]
    if few:
        _LOG.warning(
            "no post-processing is learned for %s: in fewer than %d held-out cases",
            ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else ""),
            LEAST_CASES,
        )
    known = [label for label in labels.labels if label.name not in few]
    if not known:
        return ()
    steps = [step for label in known for step in _cleaning(label.name, regions[label.value])]
    # In one order for all labels, so that each kind runs as one pass over a mask.
    steps.sort(key=lambda step: step.step != "largest")
    filling = _filling(pairs(), tuple(steps), labels.select(label.name for label in known))
    return (*steps, *filling)


def _regions(pair: HeldOutPair, values: Sequence[int]) -> Iterator[tuple[int, _Regions]]:
    """The regions of each label that is in one of the masks."""
    check_shapes(pair.prediction.shape, pair.reference.shape)
    parts = find_parts(pair.prediction, values)
    agrees = (pair.prediction == pair.reference) & (pair.prediction != 0)
    right = np.bincount(parts.components[agrees], minlength=parts.sizes.size)
    counts = overlap_counts(pair.prediction, pair.reference, values)
    voxel_mm3 = None if pair.geometry is None else pair.geometry.voxel_volume_mm3
    for number, value in enumerate(values):
        own = parts.of(number)
        if own.size or counts[value].referred:
            yield value, _Regions(parts.sizes[own], right[own], counts[value].referred, voxel_mm3)


def _cleaning(name: str, cases: Sequence[_Regions]) -> Iterator[PostprocessStep]:
    """The steps for one label, one after another, as long as one helps."""
    rule = _Rule()
    while True:
        before = [case.dice(rule) for case in cases]
        best: tuple[_Rule, _Gain] | None = None
        for candidate in _candidates(cases, rule):
            gain = _Gain.of(before, [case.dice(candidate) for case in cases])
            # What was met first has less to go wrong.
            if gain.is_sure and (best is None or gain.mean > best[1].mean + _LEAST_GAIN):
                best = candidate, gain
        if best is None:
            return
        step: dict[str, Any] = {"step": "largest"}
        if best[0].volume_mm3 != rule.volume_mm3:
            step = {"step": "min-volume", "volume_mm3": best[0].volume_mm3}
        yield PostprocessStep(label=name, evidence=best[1].text, **step)
        rule = best[0]


def _candidates(cases: Sequence[_Regions], rule: _Rule) -> Iterator[_Rule]:
    """Rules with one step more."""
    if not rule.largest:
        yield replace(rule, largest=True)
    if rule.volume_mm3 is None and all(case.voxel_mm3 is not None for case in cases):
        for volume_mm3 in _volumes(cases, rule):
            yield replace(rule, volume_mm3=volume_mm3)


def _volumes(cases: Sequence[_Regions], rule: _Rule) -> list[float]:
    """Volumes in mm3 that tell false regions, among those a rule leaves, from right ones."""
    false, right = (
        np.sort(np.concatenate([
            case.sizes[case.kept(rule) & ((case.right == 0) == wrong)] * (case.voxel_mm3 or 0.0)
            for case in cases
        ]))
        for wrong in (True, False)
    )  # fmt: skip
    found: dict[float, None] = {}
    for share in _SHARES if false.size else ():
        volume = float(np.quantile(false, share, method="higher"))
        above = right[right > volume * (1 + 1e-9)]
        if above.size:
            found[float(f"{np.sqrt(volume * above[0]):.3g}")] = None
    return list(found)


def _filling(
    pairs: Iterable[HeldOutPair], steps: tuple[PostprocessStep, ...], labels: LabelSet
) -> list[PostprocessStep]:
    """The labels whose holes are to be filled, after other steps."""
    before: dict[int, list[float]] = {value: [] for value in labels.values}
    after: dict[int, list[float]] = {value: [] for value in labels.values}
    for pair in pairs:
        cleaned = apply_chain(pair.prediction, steps, labels, geometry=pair.geometry)
        counts = overlap_counts(cleaned, pair.reference, labels.values)
        for value, count in counts.items():
            if not (count.predicted or count.referred or (pair.prediction == value).any()):
                continue
            both, mine, wanted = count.true_positive, count.predicted, count.referred
            before[value].append(_dice(both, mine, wanted))
            filled = fill_holes(cleaned, [value]) if mine else cleaned
            added = (filled == value) & (cleaned != value)
            more, right = (np.count_nonzero(x) for x in (added, added & (pair.reference == value)))
            after[value].append(_dice(both + int(right), mine + int(more), wanted))
    found = []
    for label in labels.labels:
        gain = _Gain.of(before[label.value], after[label.value])
        if gain.is_sure:
            step = PostprocessStep(step="fill-holes", label=label.name, evidence=gain.text)
            found.append(step)
    return found


def _dice(both: int, mine: int, wanted: int) -> float:
    """1 where there is nothing, and nothing is wanted."""
    return 2 * both / (mine + wanted) if mine + wanted else 1.0
