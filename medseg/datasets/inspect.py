"""Look into every case before work starts: grids, label values, voxels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import DatasetError, MedsegError
from medseg.core.geometry import Geometry
from medseg.core.scan import Scan
from medseg.datasets.dataset import Case, Dataset
from medseg.datasets.reading import HERE, Reader, read_case_image, read_case_mask
from medseg.io.guarded import GuardedReader

# What looks at a case that was read: the case, its scan, its voxels and its mask.
Look = Callable[[Case, Scan, NDArray[Any], NDArray[Any]], None]
_MOST_THREADS = 8
_COUNTED_AT_ONCE = 2**16  # bincount takes memory by the largest value


@dataclass(frozen=True)
class CaseFacts:
    """What was seen in a case that holds together.

    Attributes:
        id: The case.
        geometry: Grid of the scan and of its mask.
        dtype: Number type of the scan's voxels.
        label_voxels: Voxels of each value of the dataset, without background.
    """

    id: str
    geometry: Geometry
    dtype: str
    label_voxels: dict[int, int]


@dataclass(frozen=True)
class Inspection:
    """What was seen in many cases; ``problems`` holds one error per case that cannot be used."""

    facts: tuple[CaseFacts, ...]
    problems: dict[str, MedsegError]

    def raise_problems(self) -> None:
        """Raise the first problem, and say how many more there are.

        Raises:
            DatasetError: There is a problem.
        """
        if not self.problems:
            return
        first = next(iter(self.problems.values()))
        others = len(self.problems) - 1
        total = others + 1 + len(self.facts)
        more = f" {others} more of {total} cases have problems." if others else ""
        raise DatasetError(
            first.what, expected=first.expected, got=first.got, cure=f"{first.cure}{more}".strip()
        ) from first


def verify_case(
    case: Case, dataset: Dataset, reader: Reader = HERE, *, look: Look | None = None
) -> CaseFacts:
    """Read a case and check that it can be learned from.

    Args:
        case: Which.
        dataset: What it must agree with.
        reader: Of its files.
        look: Given the case, its scan, voxels (C, I, J, K) and mask once all is well.

    Raises:
        FileError: A file is damaged.
        LabelError: The mask does not hold whole numbers.
        DatasetError: Scan and mask lie on different grids, the number of channels or a label
            value is not that of the dataset, the mask is empty, or a voxel is not finite.
    """
    scan = read_case_image(case, reader)
    if len(scan.channels) != len(dataset.channels):
        raise DatasetError(
            f"case {case.id}, {case.images[0]}", expected=f"{len(dataset.channels)} channels, "
            f"as the dataset says ({', '.join(dataset.channels)})", got=str(len(scan.channels)),
            cure="Correct the dataset's channels, or the image.",
        )  # fmt: skip
    voxels = scan.voxels()
    _check_finite(voxels, case)
    mask, label_scan = read_case_mask(case, reader)
    gap = scan.geometry.difference(label_scan.geometry)
    if gap is not None:
        raise DatasetError(
            f"case {case.id}, {case.masks[0]}",
            expected="the grid of its image",
            got=gap,
            cure="Resample the mask to the image, or correct the header that is wrong.",
        )
    counts = _label_voxels(mask, case, dataset)
    if look is not None:
        look(case, scan, voxels, mask)
    return CaseFacts(case.id, scan.geometry, str(voxels.dtype), counts)


def verify_cases(
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    workers: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    look: Look | None = None,
) -> Inspection:
    """Verify many cases in parallel threads (reading and unzipping free the interpreter).

    Args:
        cases: Which cases to look at.
        dataset: What they must agree with.
        workers: Threads; None takes one per core, 8 at most.
        progress: Called with (done, total, case id).
        look: As for :func:`verify_case`, in these threads: what it takes from a case need not
            be read again.

    Returns:
        Facts and problems, both in the order of ``cases``.
    """
    facts: dict[str, CaseFacts] = {}
    problems: dict[str, MedsegError] = {}
    threads = workers or min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, GuardedReader() as reader:
        waiting = {
            pool.submit(verify_case, case, dataset, reader, look=look): case.id for case in cases
        }
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                case_id = waiting[future]
                try:
                    facts[case_id] = future.result()
                except MedsegError as error:
                    problems[case_id] = error
                if progress is not None:
                    progress(done, len(waiting), case_id)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    order = [case.id for case in cases]
    return Inspection(
        tuple(facts[case_id] for case_id in order if case_id in facts),
        {case_id: problems[case_id] for case_id in order if case_id in problems},
    )


def label_presence(dataset: Dataset, *, workers: int | None = None) -> dict[str, tuple[int, ...]]:
    """The labels that each mask shows, to balance folds by; none for a mask that cannot be read."""

    def one(case: Case) -> tuple[int, ...]:
        try:
            mask, _ = read_case_mask(case, reader)
        except MedsegError:
            return ()
        return tuple(
            value for value in sorted(value_counts(mask)) if value in dataset.labels.values
        )

    threads = workers or min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, GuardedReader() as reader:
        found = list(pool.map(one, dataset.cases))
    return {case.id: values for case, values in zip(dataset.cases, found, strict=True)}


def _check_finite(voxels: NDArray[Any], case: Case) -> None:
    wrong = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if wrong:
        raise DatasetError(
            f"case {case.id}, {case.images[0]}",
            expected="finite voxels",
            got=f"{wrong} of {voxels.size} that are NaN or infinite",
            cure="Replace them, for example by the value of air.",
        )


def _label_voxels(mask: NDArray[Any], case: Case, dataset: Dataset) -> dict[int, int]:
    found = value_counts(mask)
    background = found.pop(0, 0)
    found.pop(dataset.ignore or 0, 0)
    strange = sorted(set(found) - set(dataset.labels.values))
    if strange:
        known = ", ".join(f"{label.value} {label.name}" for label in dataset.labels.labels)
        raise DatasetError(
            f"case {case.id}, {case.masks[0]}",
            expected=f"the values 0 and {known}",
            got=f"also {', '.join(map(str, strange))}",
            cure="Name them in the dataset, or correct the mask.",
        )
    # Where it is stated what was looked for, nothing found is an answer.
    if not found and case.annotated is None:
        raise DatasetError(
            f"case {case.id}, {case.masks[0]}",
            expected="at least one voxel of a label",
            got=f"background alone ({background} voxels)",
            cure="Take the case out of the dataset, or correct the mask.",
        )
    return {value: found.get(value, 0) for value in dataset.labels.values}


def value_counts(mask: NDArray[Any]) -> dict[int, int]:
    """Voxels of each value that occurs in a mask of whole numbers from 0."""
    if mask.max(initial=0) < _COUNTED_AT_ONCE:
        counts = np.bincount(mask.ravel(order="K"))
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(mask, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}
