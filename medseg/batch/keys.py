"""When a case counts as done: what it was made from is unchanged, and its files are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.core.errors import MedsegError
from medseg.core.plan import Plan
from medseg.io.dicom_studies import Study
from medseg.workflows.cases import Job, Source
from medseg.workflows.options import PredictOptions
from medseg.workflows.segment import file_sha256, input_hashes, paths_of, settled

# Of the many slices of a study one hash is kept.
_MOST_FILES = 8


def case_key(job: Job, *, package_sha256: str, options: PredictOptions) -> dict[str, Any]:
    """What the mask of a case depends on, as plain JSON.

    Files count by size and time of change (mtime in ns), not by name, so that a folder may
    be moved. Empty where a file cannot be looked at: such a case is never done.
    """
    case, source = job
    try:
        files = [_looks(path) for path in input_files(source)]
    except OSError:
        return {}
    return {
        "case": case,
        "files": files if len(files) <= _MOST_FILES else _hash(files),
        "package_sha256": package_sha256,
        "options": options.of_result(),
        "backend": options.backend,
    }


def same_key(known: Mapping[str, Any], now: Mapping[str, Any], *, but_files: bool = False) -> bool:
    """Whether two keys say the same; ``but_files``: whatever sizes and times they have."""
    if not known or not now:
        return False
    left_out = {"files"} if but_files else set()
    return {k: v for k, v in known.items() if k not in left_out} == {
        k: v for k, v in now.items() if k not in left_out
    }


def same_content(source: Source, plan: Plan, input_sha256: Sequence[str]) -> bool:
    """Whether the files of a scan have these hashes, byte for byte."""
    try:
        return input_hashes(settled(source, plan), plan) == list(input_sha256)
    except (MedsegError, OSError):
        return False


def input_files(source: Source) -> list[Path]:
    """The files that a case is read from: of a study all that it has, in a fixed order."""
    if isinstance(source, Study):
        parts = {part.path for info in source.series for part in info.parts}
        return sorted(parts)
    files: list[Path] = []
    for path in paths_of(source):
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return files


def checksums(files: Sequence[Path], out: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path below the folder."""
    return {path.relative_to(out).as_posix(): file_sha256(path) for path in files}


def are_whole(files: Mapping[str, str], out: Path) -> bool:
    """Whether all files are there and hold what they held when they were written."""
    try:
        return bool(files) and all(
            file_sha256(out / name) == expected for name, expected in files.items()
        )
    except OSError:
        return False


def _hash(facts: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _looks(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]
