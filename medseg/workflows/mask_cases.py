"""Masks of a folder one after another, with their label names and, where wanted, their scans."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError, InputError, MedsegError, ResourceError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.evaluation.masks import LabelImage
from medseg.io.formats import FORMATS, read_label_names
from medseg.io.guarded import GuardedReader
from medseg.workflows.evaluation_labels import find_labels
from medseg.workflows.pairing import index_by_case

_LOG = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class MaskCase:
    """The files of one case.

    Attributes:
        case: Its id.
        mask: Its mask.
        scan: The scan, where one is wanted.
    """

    case: str
    mask: Path
    scan: Path | None = None


@dataclass(frozen=True)
class MaskOnGrid:
    """A mask that is read.

    Attributes:
        mask: (I, J, K) integers.
        grid: What its file says of its grid.
        labels: Names and colours of all values; of some also that are absent.
        scan: The scan on the same grid, where one is wanted.
    """

    mask: NDArray[Any]
    grid: Scan
    labels: LabelSet
    scan: Scan | None = None

    @property
    def geometry(self) -> Geometry:
        """Its grid."""
        return self.grid.geometry


def find_mask_cases(masks: str | Path, scans: str | Path | None = None) -> list[MaskCase]:
    """The masks of a folder, or one, by case id; with their scans where these are given.

    Raises:
        FileError: There is no such folder, or no mask in it.
        InputError: Not one mask has a scan.
    """
    masks = Path(masks)
    found = index_by_case(masks, "masks")
    if not found:
        raise FileError(f"masks {masks}", expected="a folder of masks", got="none in it")
    if scans is None:
        return [MaskCase(case, path) for case, path in found.items()]
    scans = Path(scans)
    if len(found) == 1 and (scans.is_file() or not _holds(scans, next(iter(found)))):
        # One of each belongs together, whatever they are called; DICOM is a folder, too.
        case, path = next(iter(found.items()))
        return [MaskCase(case, path, scans)]
    images = index_by_case(scans, "images")
    pairs = [MaskCase(case, path, images[case]) for case, path in found.items() if case in images]
    if not pairs:
        raise InputError(
            f"{scans} and {masks}", expected="scans and masks of the same case ids",
            got=f"{next(iter(images), 'none')} against {next(iter(found))}",
            cure="An id is the path below the folder without its suffix; rename one side.",
        )  # fmt: skip
    alone = [case for case in found if case not in images]
    if alone:
        _LOG.warning("%d masks have no scan and are left out, %s the first", len(alone), alone[0])
    return pairs


def keep_inputs(out: Path, *inputs: str | Path) -> None:
    """Refuse a folder for results that holds masks or scans: they would be written over.

    Raises:
        InputError: It is one of theirs.
    """
    for given in map(Path, inputs):
        home = given if given.is_dir() else given.parent
        if out.resolve() in (home.resolve(), given.resolve()):
            raise InputError(
                f"--out {out}", expected="a place of its own", got=f"that of {given}",
                cure="Choose another --out.",
            )  # fmt: skip


def read_mask_case(
    case: MaskCase, reader: GuardedReader, *, names: LabelSet | None = None
) -> MaskOnGrid:
    """Read a mask, and its scan.

    Args:
        case: The files.
        reader: That reads them.
        names: Labels of the data set; those in the mask's own header count for more.

    Raises:
        FileError: A file is damaged, or the mask has channels.
        GeometryError: Scan and mask lie on different grids.
        LabelError: A value is no label.
    """
    mask, grid = reader.mask(case.mask, image=case.scan)
    labels = labels_in(mask, read_names_or_none(case.mask) or names)
    if case.scan is None:
        return MaskOnGrid(mask, grid, labels)
    scan = reader.scan(case.scan)
    gap = grid.geometry.difference(scan.geometry)
    if gap is not None:
        raise GeometryError(
            f"grid of {case.mask}", expected=f"that of {case.scan}", got=gap,
            cure="Give the scan that the mask was made of.",
        )  # fmt: skip
    return MaskOnGrid(mask, grid, labels, scan)


def labels_in(mask: NDArray[Any], known: LabelSet | None, *, also: Sequence[int] = ()) -> LabelSet:
    """Labels for all values of a mask: known names, else the values themselves.

    Args:
        mask: (I, J, K) integers.
        known: Labels that have names.
        also: Values that get a label, whether the mask holds them or not.

    Raises:
        LabelError: Values are above 65535.
    """
    names = {} if known is None else dict(zip(known.values, known.names, strict=True))
    met = dict.fromkeys((*LabelImage(mask).values, *also))
    new = [value for value in met if value not in names]
    if known is not None and not new:
        return known
    for value in new:
        names[value] = str(value) if str(value) not in names.values() else f"label {value}"
    # An empty mask has nothing to be named, and a set of labels holds one at least.
    made = LabelSet.from_names(names or {1: "1"})
    colours = {} if known is None else {label.value: label for label in known.labels}
    return LabelSet(labels=tuple(colours.get(label.value, label) for label in made.labels))


def chosen_labels(mask: NDArray[Any], known: LabelSet, names: str | None) -> LabelSet:
    """The labels of a mask that are asked for, by name or value; a value may be absent.

    Args:
        mask: (I, J, K) integers.
        known: Its labels.
        names: With commas between them; None for all.

    Raises:
        LabelError: A name is unknown.
    """
    if names is None:
        return known
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    by_value = [int(name) for name in wanted if name.isdecimal() and name not in known.names]
    every = labels_in(mask, known, also=[value for value in by_value if value > 0])
    own = dict(zip(map(str, every.values), every.names, strict=True))
    return every.select(name if name in known.names else own.get(name, name) for name in wanted)


def dataset_names(masks: str | Path) -> LabelSet | None:
    """The labels that a ``dataset.json`` in or above the folder of the masks names, if any."""
    place = Path(masks)
    return find_labels(None, [], place if place.is_dir() else place.parent)


def for_each(
    cases: list[MaskCase],
    work: Callable[[MaskCase, GuardedReader], T],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, T], dict[str, str]]:
    """Do a piece of work for each case, several at once; one that fails stops no other.

    Returns:
        What came out, and messages of those that failed, by case id in the order of the cases.

    Raises:
        InputError: All failed.
        OutputError: The disk is full, or the folder cannot be written.
    """
    workers = max(1, min(workers or os.cpu_count() or 1, len(cases)))
    done: dict[str, T] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(workers) as pool, GuardedReader() as reader:
        jobs: dict[Future[T], str] = {pool.submit(work, c, reader): c.case for c in cases}
        try:
            for number, job in enumerate(as_completed(jobs), start=1):
                case = jobs[job]
                try:
                    done[case] = job.result()
                except (InputError, ResourceError) as error:
                    if len(cases) == 1:
                        raise
                    failed[case] = str(error)
                    _LOG.warning("case %s: %s", case, error)
                if progress is not None:
                    progress(number, len(cases), case)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not done:
        case, message = next(iter(failed.items()))
        raise InputError(
            f"all {len(failed)} cases failed", expected="one that can be done",
            got=f"for {case}: {message}",
        )  # fmt: skip
    order = [case.case for case in cases]
    return (
        {case: done[case] for case in order if case in done},
        {case: failed[case] for case in order if case in failed},
    )


def read_names_or_none(path: Path) -> LabelSet | None:
    """The label names that a file holds; None also where they cannot be read."""
    try:
        return read_label_names(path)
    except MedsegError:
        return None


def suffix_of(path: Path) -> str:
    """That of the file where masks can be written so, else ``.nii.gz``."""
    known = (suffix for row in FORMATS for suffix in row.written)
    return next((suffix for suffix in known if path.name.lower().endswith(suffix)), ".nii.gz")


def _holds(folder: Path, case: str) -> bool:
    """Whether a folder is one of scans, of which one has this id."""
    try:
        return case in index_by_case(folder, "images")
    except MedsegError:
        return False
