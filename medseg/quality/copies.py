"""The same scan twice, the same mask for two scans, and folds that share what they should not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.datasets.dataset import Dataset, listing
from medseg.quality.finding import Finding, Severity
from medseg.quality.observe import Observation
from medseg.quality.thumbnail import details

# Correlation of thumbnails from which two scans are taken for one, as they are and in what is
# left without their blur. Different patients reach 0.61 in detail where scans are real, and
# 0.90 where all pictures share one frame (retina, phantoms); copies stay near 1.
_ALIKE = 0.98
_ALIKE_IN_DETAIL = 0.94


def find_copies(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    """Scans and masks that occur twice; more serious where they are on both sides of a fold."""
    same = _groups([(one.case, one.scan_hash) for one in seen if one.scan_hash])
    found = [_copy(dataset, cases, "same-scan", "the same voxels in") for cases in same]
    known = {frozenset(pair) for cases in same for pair in _pairs(cases)}
    found += [
        _copy(dataset, cases, "similar-scan", "nearly the same picture in")
        for cases in _lookalikes(seen, known)
    ]
    copied = {case for cases in same for case in cases}
    masks = _groups([(o.case, o.mask_hash) for o in seen if o.mask_hash and o.case not in copied])
    found += [
        Finding(
            "same-mask", "warning", cases[0], "a mask of its own for each scan",
            f"the same mask in {listing(list(cases[1:]))}", "Look which scan it belongs to.",
            others=cases[1:],
        )
        for cases in masks
    ]  # fmt: skip
    return found


def find_split_faults(dataset: Dataset) -> list[Finding]:
    """Unknown cases in folds, cases and groups on both sides."""
    known = {case.id for case in dataset.cases}
    groups = dataset.groups
    found = []

    def add(kind: str, number: int, got: str, cure: str) -> None:
        found.append(
            Finding(
                kind, "error", "", "folds of known cases, each case and group on one side",
                f"fold {number}: {got}", cure,
            )
        )  # fmt: skip

    for number, split in enumerate(dataset.splits or ()):
        unknown = sorted({*split.train, *split.validation} - known)
        if unknown:
            add("split-unknown-case", number, f"unknown {listing(unknown)}", "Correct the folds.")
        both = sorted(set(split.train) & set(split.validation))
        if both:
            add("split-overlap", number, f"on both sides {listing(both)}", "Correct the folds.")
        train = {groups[case] for case in split.train if case in groups}
        across = sorted(train & {groups[case] for case in split.validation if case in groups})
        if across:
            add("split-group", number, f"groups on both sides: {listing(across)}",
                "Keep the cases of a group on one side.")  # fmt: skip
    return found


def _copy(dataset: Dataset, cases: tuple[str, ...], kind: str, words: str) -> Finding:
    across = [
        number
        for number, split in enumerate(dataset.splits or ())
        if set(cases) & set(split.train) and set(cases) & set(split.validation)
    ]
    severity: Severity = "error" if kind == "same-scan" or across else "warning"
    where = f", on both sides of fold {', '.join(map(str, across))}" if across else ""
    return Finding(
        kind, severity, cases[0], "a scan of its own for each case",
        f"{words} {listing(list(cases[1:]))}{where}",
        "Keep one of them, or give them one group so that no fold parts them.",
        others=cases[1:],
    )  # fmt: skip


def _groups(rows: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    by_hash: dict[str, list[str]] = {}
    for case, digest in rows:
        by_hash.setdefault(digest, []).append(case)
    return [tuple(sorted(cases)) for cases in by_hash.values() if len(cases) > 1]


def _pairs(cases: Sequence[str]) -> list[tuple[str, str]]:
    return [(a, b) for i, a in enumerate(cases) for b in cases[i + 1 :]]


def _lookalikes(seen: Sequence[Observation], known: set[frozenset[str]]) -> list[tuple[str, ...]]:
    """Sets of cases whose thumbnails are nearly equal; pairs in ``known`` do not count."""
    found = []
    sizes = {one.thumbnail.size for one in seen if one.thumbnail is not None}
    for size in sizes:
        own = [o for o in seen if o.thumbnail is not None and o.thumbnail.size == size]
        table = np.stack([one.thumbnail for one in own if one.thumbnail is not None])
        fine = details(table)
        alike = (table @ table.T > _ALIKE) & (fine @ fine.T > _ALIKE_IN_DETAIL)
        names = [one.case for one in own]
        links = [
            (names[i], names[j])
            for i, j in zip(*np.nonzero(np.triu(alike, 1)), strict=True)
            if frozenset((names[i], names[j])) not in known
        ]
        found += _joined(links)
    return found


def _joined(links: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Sets of cases that are linked, directly or by way of others."""
    home: dict[str, set[str]] = {}
    for a, b in links:
        united = home.get(a, {a}) | home.get(b, {b})
        for case in united:
            home[case] = united
    return sorted({tuple(sorted(group)) for group in home.values()})
