"""Check a dataset: every case once, in parallel, then the cases against each other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.datasets.dataset import Dataset, listing
from medseg.io.guarded import GuardedReader
from medseg.quality.copies import find_copies, find_split_faults
from medseg.quality.finding import SEVERITIES, Finding, in_order
from medseg.quality.observe import Observation, observe_case
from medseg.quality.outliers import FEWEST, find_outliers
from medseg.quality.placement import find_misplaced

_MOST_THREADS = 8
# A label that fewer cases show can hardly be learned, and not be judged.
_FEWEST_CASES = 3
_USUAL = 0.9
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        dataset: What was checked.
        findings: Errors first.
        seen: What was seen in each case, in the dataset's order.
    """

    dataset: Dataset
    findings: tuple[Finding, ...]
    seen: tuple[Observation, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Findings of each severity."""
        return {s: sum(f.severity == s for f in self.findings) for s in SEVERITIES}


def check_dataset(
    dataset: Dataset,
    *,
    workers: int | None = None,
    progress: Progress = lambda done, total, note: None,
) -> CheckReport:
    """Look into every case in parallel threads, then compare them.

    Args:
        dataset: Opened with ``lenient``, so that cases with missing files are in it.
        workers: Threads; None takes one per core, 8 at most.
        progress: Called with (done, total, case id).
    """
    threads = workers or min(_MOST_THREADS, os.cpu_count() or 1)
    found: dict[str, Observation] = {}
    with ThreadPoolExecutor(threads) as pool, GuardedReader() as reader:
        waiting = {
            pool.submit(observe_case, case, dataset, reader): case.id for case in dataset.cases
        }
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                found[waiting[future]] = future.result()
                progress(done, len(waiting), waiting[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    seen = tuple(found[case.id] for case in dataset.cases)
    findings = [finding for one in seen for finding in one.findings]
    findings += find_outliers(dataset, seen)
    findings += find_misplaced(dataset, seen)
    findings += find_copies(dataset, seen)
    findings += find_split_faults(dataset)
    findings += _labels(dataset, seen)
    findings += _missing_labels(dataset, seen)
    findings += _tiny_parts(dataset, seen)
    findings += _strays(dataset)
    return CheckReport(dataset, in_order(findings), seen)


def _labels(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    """Labels that no mask shows, or too few; numbers that are left out."""
    shown = Counter(value for one in seen for value in one.labels)
    found = []
    unused = [label for label in dataset.labels.labels if not shown[label.value]]
    if unused:
        found.append(
            Finding(
                "unused-label", "warning", "", "each label in some mask",
                f"none of {listing([label.name for label in unused])}",
                "Take it out of the dataset's labels, or look for its masks.",
                tuple(label.value for label in unused),
            )
        )  # fmt: skip
    rare = [label for label in dataset.labels.labels if 0 < shown[label.value] < _FEWEST_CASES]
    if rare:
        names = [f"{label.name} ({shown[label.value]})" for label in rare]
        found.append(
            Finding(
                "few-cases", "warning", "", f"each label in at least {_FEWEST_CASES} cases",
                listing(names), "Add cases, merge the label with another, or leave it out.",
                tuple(label.value for label in rare),
            )
        )  # fmt: skip
    values = dataset.labels.values
    gaps = sorted(set(range(1, max(values) + 1)) - set(values))
    if gaps:
        found.append(
            Finding(
                "label-gaps", "note", "", "values 1, 2, 3 without gaps",
                f"no {listing([str(v) for v in gaps])}",
                "medseg does not mind; `medseg convert --to nnunet` numbers them anew.",
            )
        )  # fmt: skip
    return found


def _missing_labels(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    """A label that nearly all other masks show."""
    masks = [one for one in seen if one.labels]
    found = []
    if len(masks) < FEWEST:
        return []
    shown = Counter(value for one in masks for value in one.labels)
    usual = [v for v in dataset.labels.values if shown[v] >= _USUAL * len(masks)]
    names = dict(zip(dataset.labels.values, dataset.labels.names, strict=True))
    for one in masks:
        missing = [value for value in usual if value not in one.labels]
        if missing:
            found.append(
                Finding(
                    "missing-label", "warning", one.case, "labels that nearly all masks show",
                    f"no {listing([names[value] for value in missing])}",
                    "Look whether the structure was forgotten.", tuple(missing),
                )
            )  # fmt: skip
    return found


def _tiny_parts(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    """Crumbs beside a structure that is in one piece in most other cases."""
    crumbs = np.array(
        [[one.labels[v].tiny_parts if v in one.labels else -1 for v in dataset.labels.values]
         for one in seen]
    ).reshape(len(seen), len(dataset.labels))  # fmt: skip
    parts = np.array(
        [[one.labels[v].parts if v in one.labels else np.nan for v in dataset.labels.values]
         for one in seen], dtype=np.float64,
    ).reshape(crumbs.shape)  # fmt: skip
    known, with_crumbs = (crumbs >= 0).sum(axis=0), (crumbs > 0).sum(axis=0)
    # Vessels and lesions come in parts; there a crumb tells nothing.
    in_one_piece = (with_crumbs <= 0.25 * known) & (_medians(parts) == 1)
    found = []
    for row, one in enumerate(seen):
        bad = [
            label
            for column, label in enumerate(dataset.labels.labels)
            if crumbs[row, column] > 0 and in_one_piece[column]
        ]
        if bad:
            count = sum(one.labels[label.value].tiny_parts for label in bad)
            voxels = sum(one.labels[label.value].tiny_voxels for label in bad)
            found.append(
                Finding(
                    "stray-parts", "note" if voxels < FEWEST else "warning", one.case,
                    "structures in one piece",
                    f"{count} tiny parts ({voxels} voxels) of "
                    f"{listing([label.name for label in bad])}",
                    "Remove them (--fix does).", tuple(label.value for label in bad),
                )
            )  # fmt: skip
    return found


def _medians(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each column, 0 where it holds nothing."""
    known = np.isfinite(table).any(axis=0)
    result = np.zeros(table.shape[1])
    result[known] = np.nanmedian(table[:, known], axis=0)
    return result


def _strays(dataset: Dataset) -> list[Finding]:
    if not dataset.strays:
        return []
    return [
        Finding(
            "stray-files", "warning", "", "each file in a case",
            f"{len(dataset.strays)} that belong to none: "
            f"{listing([path.name for path in dataset.strays])}",
            "Name them in the dataset, or remove them.",
        )
    ]  # fmt: skip
