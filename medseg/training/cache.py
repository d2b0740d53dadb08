"""Preprocessed cases on disk, read by patch.

A case is a folder of three ``.npy`` files (image, label, places of each class) and a note
of what they were made from. Arrays are opened memory-mapped, so that a patch costs only
its own bytes. A case is complete when its note is there: it is written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.plan import Plan
from medseg.core.scan import Scan
from medseg.datasets.dataset import Case
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.io.atomic import whole_file, write_text
from medseg.transforms.load import geometry_of
from medseg.transforms.steps import preprocessing

CACHE_FORMAT = 1
_PLACES_PER_CLASS = 10_000
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CachedCase:
    """One preprocessed case.

    Attributes:
        case_id: The dataset's name of it.
        image: (C, I, J, K) float32, memory-mapped.
        label: (I, J, K) uint8 or uint16 indices of the plan's label scheme, memory-mapped.
        places: For each index that occurs, (n, 3) voxels that have it; of background only where
            some voxels are to be ignored, and never of these.
        known: For each label whether it was annotated in this case; None where all were.
        missing: Channels that the case has no image of; they are 0.
    """

    case_id: str
    image: NDArray[np.float32]
    label: NDArray[Any]
    places: dict[int, NDArray[Any]]
    known: tuple[bool, ...] | None = None
    missing: tuple[int, ...] = ()


def build_cache(
    folder: Path,
    cases: Sequence[Case],
    plan: Plan,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[CachedCase]:
    """Preprocess the cases that are not there yet, and open all of them.

    Args:
        folder: Where the cache lies; made where it is missing.
        cases: Each with a label.
        plan: Only what changes the voxels counts towards the key of a case.
        workers: Threads; the array work releases the interpreter.
        progress: Called with (done, total, case id).
    """
    key = _plan_key(plan)

    def one(case: Case) -> CachedCase:
        home = folder / hashlib.sha256(case.id.encode()).hexdigest()[:16]
        note = _note(case, key)
        if _read_note(home) != note:
            _preprocess(case, plan, home, note)
        known = plan.scheme.known(case.annotated)
        return replace(_open(case.id, home), known=known, missing=case.missing)

    done: list[CachedCase] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for case, cached in zip(cases, pool.map(one, cases), strict=True):
            done.append(cached)
            if progress is not None:
                progress(len(done), len(cases), case.id)
    return done


def _plan_key(plan: Plan) -> str:
    parts = {
        "format": CACHE_FORMAT,
        "spacing": plan.spacing_mm,
        "channels": [channel.model_dump() for channel in plan.channels],
        "sources": [label.sources for label in plan.labels.labels],
    }
    if plan.activation == "regions" or plan.ignore is not None:
        parts |= {"regions": plan.activation == "regions", "ignore": plan.ignore}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _note(case: Case, key: str) -> str:
    stamps = []
    for path in case.files:
        # A folder is a DICOM series: its files count, not the folder itself.
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            status = file.stat()
            stamps.append([status.st_size, status.st_mtime_ns])
    note: dict[str, Any] = {"plan": key, "case": case.id, "files": stamps}
    if case.structures is not None:
        # What a DICOM mask comes to depends on the names that count, too.
        note["structures"] = [[label.value, label.name] for label in case.structures.labels]
    if case.series:
        note["series"] = case.series
    if case.missing:
        note["missing"] = case.missing
    return json.dumps(note, sort_keys=True)


def _read_note(home: Path) -> str | None:
    try:
        return (home / "note.json").read_text(encoding="utf-8")
    except OSError:
        return None


def _preprocess(case: Case, plan: Plan, home: Path, note: str) -> None:
    (home / "note.json").unlink(missing_ok=True)
    mask, grid = read_case_mask(case)
    label_scan = Scan.from_array(mask, grid.geometry, source=grid.source)
    data = preprocessing(plan, with_mask=True)(
        {"image": read_case_image(case), "label": label_scan}
    )
    image = np.ascontiguousarray(data["image"].as_tensor().numpy())
    image[list(case.missing)] = 0
    scheme = plan.scheme
    label = np.ascontiguousarray(data["label"].as_tensor().numpy()[0].astype(scheme.dtype))
    assert geometry_of(data["image"]).difference(geometry_of(data["label"])) is None
    places = _places(label, ignored=scheme.ignored)
    for name, array in (("image", image), ("label", label), ("places", places)):
        with whole_file(home / f"{name}.npy") as temporary:
            np.save(temporary, array)
    write_text(home / "note.json", note)


def _places(label: NDArray[Any], *, ignored: int | None = None) -> NDArray[np.int32]:
    """Rows (class, i, j, k): up to 10,000 evenly spread voxels of each class but background.

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


def _open(case_id: str, home: Path) -> CachedCase:
    image = np.load(home / "image.npy", mmap_mode="r", allow_pickle=False)
    label = np.load(home / "label.npy", mmap_mode="r", allow_pickle=False)
    rows = np.load(home / "places.npy", allow_pickle=False)
    places = {int(value): rows[rows[:, 0] == value, 1:] for value in np.unique(rows[:, 0])}
    return CachedCase(case_id, image, label, places)
