"""Which files of a folder are scans, which are channels of one scan, and whether they change."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from medseg.io.formats import SCAN_SUFFIXES, case_name

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def scans_in(folder: Path) -> list[Path]:
    """Scans that lie in a folder itself, by their suffix, sorted; none where it is missing."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower().endswith(SCAN_SUFFIXES)
    )


def by_case(paths: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Group ``case_0000``, ``case_0001`` ... by case: {"case": {0: path, 1: path}}.

    A name without such an ending is channel 0 of a case of that name.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in paths:
        name = case_name(path)
        match = _CHANNEL.fullmatch(name)
        case_id, number = (match[1], int(match[2])) if match else (name, 0)
        found.setdefault(case_id, {})[number] = path
    return found


def stamps(files: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, bytes and time of change (ns) of each file: files with the same have not changed.

    Raises:
        OSError: A file is gone.
    """
    found = []
    for path in files:
        # A folder is a DICOM series: its files count, not the folder itself.
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            status = file.stat()
            found.append((file.name, status.st_size, status.st_mtime_ns))
    return tuple(found)
