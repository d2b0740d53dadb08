"""Preprocessed cases on disk, made once, read by patch.

A case lies in a folder named by a hash of its files and of all in the plan that changes
voxels, so that runs with other plans can share a cache. A folder appears whole or not at all,
and what a killed run has finished is kept. Runs that make one cache at once share the work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.core.errors import OutputError
from medseg.core.plan import Plan
from medseg.datasets.dataset import Case
from medseg.datasets.files import stamps
from medseg.datasets.kept import KeptCases
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.inference.cascade import OneHotVolume
from medseg.inference.volume import TensorVolume, Volume
from medseg.io.atomic import remove_leftovers, whole_folder
from medseg.training.cache_store import (
    Places,
    StoredArray,
    StoredCase,
    damaged,
    read_case,
    write_case,
)
from medseg.training.cache_turns import InUse, remove_stale, turn
from medseg.transforms.preprocess import RestoreRecord, preprocess_mask, preprocess_scan

CACHE_FORMAT = 2
_PLACES_PER_CLASS = 10_000
# Bytes of a voxel on the disk: what compression leaves of an image's four, and labels.
_USUAL_BYTES, _MOST_BYTES = 1.9, 3.0
# Copies of a case that preprocessing holds, at its own and at the plan's spacing.
_COPIES = 5
# Until it is asked again whether another process has made a case.
_ANOTHER_LOOK_S = 0.2
Progress = Callable[[int, int, str], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedCase:
    """One preprocessed case.

    Attributes:
        case_id: The dataset's name of it.
        image: (C, I, J, K) float32; slices of it are read from the disk.
        label: (I, J, K) uint8 or uint16 indices of the plan's label scheme, likewise.
        places: For each index that occurs, (n, 3) voxels that have it; of background only where
            some voxels are to be ignored, and never of these.
        known: For each label whether it was annotated in this case; None where all were.
        missing: Channels that the case has no image of; they are 0.
        earlier: (I, J, K) labels of a cascade's first stage, counted from 1; None without one.
    """

    case_id: str
    image: NDArray[np.float32] | StoredArray
    label: NDArray[Any] | StoredArray
    places: Mapping[int, NDArray[Any]] | Places
    known: tuple[bool, ...] | None = None
    missing: tuple[int, ...] = ()
    earlier: NDArray[Any] | StoredArray | None = None

    def volume(self, plan: Plan) -> Volume:
        """All channels that the network of a plan takes, in memory."""
        voxels = TensorVolume(torch.from_numpy(np.array(self.image)))
        if self.earlier is None:
            return voxels
        labels = torch.from_numpy(np.asarray(self.earlier).astype(np.int32))
        return OneHotVolume(voxels, labels, plan.cascade_labels)


def build_cache(
    folder: Path,
    cases: Sequence[Case],
    plan: Plan,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    kept: KeptCases | None = None,
) -> list[CachedCase]:
    """Preprocess the cases that are not there yet, and open all of them.

    Args:
        folder: Where the cache lies; made where it is missing.
        cases: Each with a label.
        plan: Only what changes the voxels counts towards the key of a case.
        workers: Threads, as many as cores by default, and fewer where the memory is short; the
            array work releases the interpreter.
        progress: Called with (done, total, case id), and while another process makes a case.
        kept: Cases that need not be read again; nothing stays in it.

    Raises:
        OutputError: The disk has no room for what is missing; no case is written then.
    """
    key, told = _plan_key(plan), progress or (lambda done, total, note: None)
    kept = kept or KeptCases()
    homes = [folder / _folder_name(case, key) for case in cases]
    folder.mkdir(parents=True, exist_ok=True)
    use = InUse(folder)
    found = [read_case(home, use=use) for home in homes]
    lacking = [case for case, stored in zip(cases, found, strict=True) if stored is None]
    cores = workers or os.cpu_count() or 1
    if lacking:
        remove_leftovers(folder)
        remove_stale(folder)
        cores = _announce(folder, lacking, plan, cores, kept)

    def one(number: int) -> StoredCase | None:
        case, home = cases[number], homes[number]
        return found[number] or _made(case, plan, home, key=key, use=use, kept=kept)

    done: list[CachedCase] = []
    with _threads_of_torch(1 if cores > 1 else None), ThreadPoolExecutor(cores) as pool:
        for number, found_now in enumerate(pool.map(one, range(len(cases)))):
            case, stored = cases[number], found_now
            while stored is None:
                told(len(done), len(cases), f"{case.id}, which another process makes")
                time.sleep(_ANOTHER_LOOK_S)
                stored = one(number)
            done.append(_as_cached(case, plan, stored))
            told(len(done), len(cases), case.id)
    kept.clear()
    return done


def _as_cached(case: Case, plan: Plan, stored: StoredCase) -> CachedCase:
    return CachedCase(
        case.id, stored.image, stored.label, stored.places,
        known=plan.scheme.known(case.annotated), missing=case.missing,
    )  # fmt: skip


@contextmanager
def _threads_of_torch(number: int | None) -> Iterator[None]:
    """Cases run side by side; within each of them more threads would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _announce(folder: Path, cases: Sequence[Case], plan: Plan, cores: int, kept: KeptCases) -> int:
    """Say how large the cache will get, refuse where there is no room; how many cases at once.

    Raises:
        OutputError: The disk has no room.
    """
    with ThreadPoolExecutor(cores) as pool:
        sizes = list(pool.map(lambda case: _voxels(case, plan, kept), cases))
    voxels = sum(working for _, working in sizes)
    free = shutil.disk_usage(folder).free
    _log.info(
        "preprocessing %d cases into %s: about %s, %s are free",
        len(cases), folder, _size(voxels * _USUAL_BYTES), _size(free),
    )  # fmt: skip
    if voxels * _MOST_BYTES > free:
        raise OutputError(
            f"cache {folder}",
            expected=f"up to {_size(voxels * _MOST_BYTES)} of free space for {len(cases)} cases",
            got=_size(free),
            cure="Free some space (medseg cache clean), or choose another --out.",
        )
    import psutil

    heaviest = max(_COPIES * 4 * (own + working) for own, working in sizes)
    return int(max(1, min(cores, psutil.virtual_memory().available / 2 // max(heaviest, 1))))


def _voxels(case: Case, plan: Plan, kept: KeptCases) -> tuple[int, int]:
    """Voxels of all channels in the files and in the cache."""
    known = kept.look_up(case)
    scan = read_case_image(case) if known is None else known.scan
    working = RestoreRecord.for_plan(scan.geometry, plan).working.shape
    return len(scan.channels) * prod(scan.geometry.shape), len(scan.channels) * prod(working)


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def _plan_key(plan: Plan) -> str:
    """A hash of all that changes voxels."""
    parts = plan.model_dump(
        mode="json",
        include={
            "orientation", "axis_order", "crop", "spacing_mm", "resampling", "channels",
            "activation", "ignore",
        },
    )  # fmt: skip
    parts |= {
        "format": CACHE_FORMAT,
        "sources": [label.sources for label in plan.labels.labels],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _folder_name(case: Case, key: str) -> str:
    note: dict[str, Any] = {"plan": key, "case": case.id, "files": stamps(case.files)}
    if case.structures is not None:
        # What a DICOM mask comes to depends on the names that count, too.
        note["structures"] = [[label.value, label.name] for label in case.structures.labels]
    note["series"], note["missing"] = list(case.series), list(case.missing)
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()[:24]


def _made(
    case: Case, plan: Plan, home: Path, *, key: str, use: InUse, kept: KeptCases
) -> StoredCase | None:
    """The case, made if it is not there; None where another process is at it."""
    with turn(home) as mine:
        if not mine:
            return None
        stored = read_case(home, use=use)  # another process may have been quicker
        if stored is not None:
            return stored
        if home.is_dir():  # damaged, or cut short by a loss of power
            shutil.rmtree(home, ignore_errors=True)
        _preprocess(case, plan, home, key=key, kept=kept)
        stored = read_case(home, use=use)
    if stored is None:
        raise damaged(home, "a folder that was changed at once")
    return stored


def _preprocess(case: Case, plan: Plan, home: Path, *, key: str, kept: KeptCases) -> None:
    known = kept.take(case)
    if known is None:
        mask, grid = read_case_mask(case)
        scan = read_case_image(case)
    else:
        mask, grid, scan = known.mask, known.scan, known.scan
    image, record = preprocess_scan(scan, plan)
    label, geometry = preprocess_mask(mask, grid.geometry, plan, crop=record.crop)
    assert record.working.difference(geometry) is None
    places = _places(label, ignored=plan.scheme.ignored)
    try:
        with whole_folder(home) as folder:
            write_case(
                folder, image.numpy(), label, places=places, made_from={"plan": key[:12]},
                thin=plan.patch_size[2] == 1,
            )  # fmt: skip
    except OutputError:
        # On a disk without locks another process may have been quicker; it wrote the same.
        if read_case(home) is None:
            raise


def _places(label: NDArray[Any], *, ignored: int | None = None) -> NDArray[np.int32]:
    """Rows (index, i, j, k): up to 10,000 evenly spread voxels of each index but background.

    Where some voxels are to be ignored, background counts too: it is annotated like the rest.
    """
    rows = []
    flat = label.ravel()
    where = np.flatnonzero(flat if ignored is None else flat != ignored)
    order = where[np.argsort(flat[where], kind="stable")]
    values, firsts = np.unique(flat[order], return_index=True)
    for value, part in zip(values, np.split(order, firsts[1:]), strict=True):
        kept = part[:: max(1, -(-len(part) // _PLACES_PER_CLASS))]
        voxels = np.stack(np.unravel_index(kept, label.shape), axis=1)
        rows.append(np.concatenate([np.full((len(kept), 1), value), voxels], axis=1))
    return np.concatenate(rows).astype(np.int32) if rows else np.zeros((0, 4), dtype=np.int32)
