"""Mend what can be mended safely; leave out what can't. The source is never touched."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import DatasetError
from medseg.core.geometry import Geometry
from medseg.core.scan import Scan
from medseg.datasets.dataset import Case, Dataset, Split
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.datasets.write import Content, write_dataset
from medseg.io.formats import read_scan
from medseg.quality.anatomy import tiny_parts
from medseg.quality.check import CheckReport
from medseg.quality.finding import Finding
from medseg.quality.pictures import to_grid

# Up to here a difference of two headers is rounding, not place.
_ROUNDING_VOXELS = 0.5
# A mask on another grid is carried over only where the two cover the same part of the patient.
_COVERED = 0.95
_FEW_VOXELS = 0.01
_OF_THE_DATASET = "dataset"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Mended:
    """What became of a dataset.

    Attributes:
        changes: (case, what was done).
        left_out: (case, why).
        remaining: Warnings that nobody but a person can judge; the cases are in the copy.
    """

    changes: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]
    remaining: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "changes": [{"case": case, "change": text} for case, text in self.changes],
            "left_out": [{"case": case, "reason": text} for case, text in self.left_out],
            "remaining": [finding.to_dict() for finding in self.remaining],
        }


def mend_dataset(
    report: CheckReport,
    out: Path,
    *,
    progress: Progress = lambda done, total, note: None,
) -> Mended:
    """Write a mended copy of a checked dataset in MSD layout, with ``mended.json`` in it.

    Mended are labels that are whole numbers but for rounding, masks of 0 and 255, headers that
    differ by rounding, masks on another grid over the same part of the patient, single
    voxels that are not finite, tiny stray parts, and copies of a scan (one is kept).

    Raises:
        DatasetError: No case is left.
        OutputError: ``out`` cannot be written.
    """
    by_case: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        by_case[finding.case].append(finding)
    changes: list[tuple[str, str]] = []
    left_out = _copies_to_drop(report)
    contents: dict[str, Content] = {}
    for case in report.dataset.cases:
        if case.id in left_out:
            continue
        bench = _Bench(case, report.dataset)
        reason = bench.mend(by_case[case.id])
        if reason:
            left_out[case.id] = reason
            continue
        changes += [(case.id, text) for text in bench.changes]
        if bench.changes:
            contents[case.id] = bench.content()
    kept = tuple(case for case in report.dataset.cases if case.id not in left_out)
    if not kept:
        raise DatasetError(
            f"dataset '{report.dataset.name}'", expected="cases that can be used", got="none"
        )
    splits, told = _splits(report.dataset, {case.id for case in kept})
    changes += told
    done = Mended(tuple(changes), tuple(left_out.items()), _remaining(report, left_out))
    write_dataset(
        replace(report.dataset, cases=kept, splits=splits),
        out,
        layout="msd",
        contents=contents,
        notes={"mended.json": json.dumps(done.to_dict(), indent=1)},
        progress=progress,
    )
    return done


def _remaining(report: CheckReport, left_out: dict[str, str]) -> tuple[Finding, ...]:
    mended = {
        "float-labels", "stray-parts", "stray-files", "same-scan", "grid-shape", "grid-position",
        "non-finite", "split-unknown-case", "split-overlap",
    }  # fmt: skip
    return tuple(f for f in report.findings if f.kind not in mended and f.case not in left_out)


def _copies_to_drop(report: CheckReport) -> dict[str, str]:
    """All but the first of equal scans; all of them where their masks differ."""
    masks = {one.case: one.mask_hash for one in report.seen}
    dropped: dict[str, str] = {}
    for finding in report.findings:
        if finding.kind != "same-scan":
            continue
        everyone = (finding.case, *finding.others)
        if len({masks[case] for case in everyone}) == 1:
            dropped |= dict.fromkeys(finding.others, f"a copy of {finding.case}")
        else:
            names = ", ".join(everyone)
            dropped |= dict.fromkeys(everyone, f"one scan with several masks ({names})")
    return dropped


class _Bench:
    """One case on the bench: its mask and voxels are read when the first mend asks for them."""

    def __init__(self, case: Case, dataset: Dataset) -> None:
        self.case, self.dataset = case, dataset
        self.changes: list[str] = []
        self._scan: Scan | None = None
        self._mask: tuple[NDArray[Any], Geometry] | None = None
        self._new_mask: NDArray[Any] | None = None
        self._new_scan: Scan | None = None

    def mend(self, findings: list[Finding]) -> str:
        """Mend each finding; returns why the case cannot be kept, "" where it can."""
        order = sorted(findings, key=lambda f: _ORDER.get(f.kind, 0))
        for finding in order:
            step = _STEPS.get(finding.kind)
            done = step(self, finding) if step is not None else ""
            if done:
                self.changes.append(done)
            elif finding.severity == "error" and finding.kind not in _OF_SEVERAL:
                return f"{finding.kind}: {finding.got}"
        return ""

    def content(self) -> Content:
        """What the case gets instead of its files."""
        return Content(self._new_scan, self._new_mask)

    @property
    def scan(self) -> Scan:
        if self._scan is None:
            self._scan = read_case_image(self.case)
        return self._scan

    @property
    def mask(self) -> NDArray[Any]:
        """The mask as it is by now."""
        if self._new_mask is not None:
            return self._new_mask
        return self._read()[0]

    def _read(self) -> tuple[NDArray[Any], Geometry]:
        if self._mask is None:
            stored = self.case.label if self.case.structures is None else None
            raw = None if stored is None else read_scan(stored)
            if raw is not None and len(raw.channels) == 1 and raw.voxels().dtype.kind == "f":
                self._mask = np.rint(raw.voxels()[0]).astype(np.uint16), raw.geometry
            else:
                mask, scan = read_case_mask(self.case)
                self._mask = mask, scan.geometry
        return self._mask

    def round_labels(self, finding: Finding) -> str:
        self._new_mask = self.mask
        return "labels rounded to whole numbers"

    def move_header(self, finding: Finding) -> str:
        """Only where the two headers differ by less than half a voxel."""
        mask, grid = self._read()
        loose = self.scan.geometry.difference(grid, tolerance_voxels=_ROUNDING_VOXELS)
        if loose is not None:
            return ""
        self._new_mask = mask
        return f"the mask got the header of its image ({finding.got})"

    def resample(self, finding: Finding) -> str:
        mask, grid = self._read()
        target = self.scan.geometry
        box = np.ones(grid.shape, dtype=np.uint8)
        back = np.ones(target.shape, dtype=np.uint8)
        covered = min(to_grid(box, grid, target).mean(), to_grid(back, target, grid).mean())
        if covered < _COVERED:
            return ""
        moved = to_grid(mask, grid, target)
        if set(np.unique(moved)) != set(np.unique(mask)):
            return ""  # a small structure would be lost
        self._new_mask = moved
        return f"the mask was carried to the grid of its image ({finding.got})"

    def replace_non_finite(self, finding: Finding) -> str:
        voxels = self.scan.voxels()
        bad = ~np.isfinite(voxels)
        if bad.mean() > _FEW_VOXELS:
            return ""
        clean = voxels.copy()
        for channel, wrong in zip(clean, bad, strict=True):
            channel[wrong] = channel[~wrong].min()
        self._new_scan = replace(self.scan, load=lambda: clean)
        return f"{int(bad.sum())} voxels that were not finite got the lowest value of the scan"

    def scale_labels(self, finding: Finding) -> str:
        """A mask of 0 and 255 in a dataset of one label."""
        values = self.dataset.labels.values
        if len(values) != 1 or finding.labels != (255,) or values[0] in np.unique(self.mask):
            return ""
        self._new_mask = np.where(self.mask == 255, values[0], 0).astype(np.uint16)
        return f"255 became {values[0]}"

    def remove_tiny(self, finding: Finding) -> str:
        tiny = tiny_parts(self.mask, finding.labels)
        self._new_mask = np.where(tiny, 0, self.mask)
        return f"{int(tiny.sum())} voxels of tiny parts removed"


_STEPS: dict[str, Callable[[_Bench, Finding], str]] = {
    "float-labels": _Bench.round_labels,
    "grid-position": _Bench.move_header,
    "grid-shape": _Bench.resample,
    "unknown-label": _Bench.scale_labels,
    "non-finite": _Bench.replace_non_finite,
    "stray-parts": _Bench.remove_tiny,
}
# Their first case stays; what to do with the others is decided elsewhere, or by a person.
_OF_SEVERAL = {"same-scan", "similar-scan"}
_ORDER = {kind: number for number, kind in enumerate(_STEPS, start=1)}


def _splits(
    dataset: Dataset, kept: set[str]
) -> tuple[tuple[Split, ...] | None, list[tuple[str, str]]]:
    """The folds without cases that are gone, unknown, or on both sides (they stay judges)."""
    if dataset.splits is None:
        return None, []
    told, made = [], []
    for number, split in enumerate(dataset.splits):
        judged = tuple(case for case in split.validation if case in kept)
        learned = tuple(c for c in split.train if c in kept and c not in set(judged))
        gone = Counter((*split.train, *split.validation)) - Counter((*learned, *judged))
        if gone:
            names = ", ".join(sorted(gone))
            told.append((_OF_THE_DATASET, f"fold {number} no longer names {names} (again)"))
        made.append(Split(learned, judged))
    return tuple(made), told
