"""Which cases there are to segment: files and folders named, channels joined, tables read."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from medseg.core.errors import FileError, InputError
from medseg.core.plan import Plan
from medseg.io.dicom_studies import Study
from medseg.io.formats import case_name, find_scans
from medseg.workflows.studies import (
    named_studies,
    studies_below,
    studies_in_file,
    study_or_path,
)

# One case: its id, and a path, a path per channel name, or a DICOM study.
Source = Path | dict[str, Path] | Study
Job = tuple[str, Source]

_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


def find_cases(inputs: Sequence[Path], plan: Plan, *, out: Path | None = None) -> list[Job]:
    """Name the cases of files and folders, and join ``case_0000``, ``case_0001`` ... by channel.

    Args:
        inputs: Files and folders.
        plan: Says how many channels there are.
        out: Masks that lie here from an earlier run are not scans.

    Raises:
        FileError: A path does not exist.
        InputError: There is no scan, two have one id, or a channel is missing.
    """
    files: list[Path] = []
    studies: list[Study] = []
    roots: list[Path] = []
    for path in inputs:
        # Folders without links and "..", so that "below the common folder" has one meaning;
        # a file keeps its own name, also where it is a link.
        if path.is_dir():
            roots.append(path.resolve())
            files += _scans_below(roots[-1], out)
            studies += studies_below(roots[-1])
        elif path.exists():
            roots.append(path.parent.resolve())
            file = roots[-1] / path.name
            found = studies_in_file(file)
            studies += found
            files += [] if found else [file]
        else:
            raise FileError(str(path), expected="a scan or a folder of scans", got="no such path")
    files = list(dict.fromkeys(files))
    if not files and not studies:
        raise InputError(
            ", ".join(map(str, inputs)) or "inputs",
            expected="at least one scan",
            got="none of a known format",
            cure="NIfTI, NRRD, MHA, DICOM, PNG, JPEG and TIFF are read. Links that lead out of a "
            "folder are not followed: give such files by name, or in a table with --cases.",
        )
    base = Path(os.path.commonpath(roots))
    pairs: list[tuple[str, Path | Study]] = [
        ((file.parent / case_name(file)).relative_to(base).as_posix(), file) for file in files
    ]
    named: dict[str, Path | Study] = {}
    for case, source in [*pairs, *named_studies(studies, base)]:
        if case in named:
            both = " and ".join(str(getattr(s, "path", s)) for s in (named[case], source))
            raise InputError(
                f"case id '{case}'",
                expected="one scan",
                got=both,
                cure="Rename one of them, or give them in two calls.",
            )
        named[case] = source
    if len(plan.channels) == 1:
        return list((_unnumbered(named) if plan.scan_names == "numbered" else named).items())
    in_files = {case: source for case, source in named.items() if isinstance(source, Path)}
    in_studies = [(case, source) for case, source in named.items() if isinstance(source, Study)]
    return [*_by_channel(in_files, plan), *in_studies]


def _scans_below(folder: Path, out: Path | None) -> list[Path]:
    """Scans in a folder, without the masks of an earlier run where ``out`` lies in it."""
    scans = find_scans(folder)
    if out is None or folder not in out.resolve().parents:
        return scans
    return [scan for scan in scans if out.resolve() not in scan.parents]


def read_case_table(path: Path, plan: Plan) -> list[Job]:
    """Read a CSV table: ``case`` and a column per channel name; paths are relative to it.

    A model of one channel may call its column ``image``.

    Raises:
        InputError: A column or a cell is missing, or two rows have one case id.
        FileError: The table cannot be read.
    """
    names = [channel.name for channel in plan.channels]
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise csv.Error("NUL characters, as UTF-16 has them")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(str(path), expected="a CSV table in UTF-8", got=str(error)) from error
    columns = list(rows[0]) if rows else []
    if len(names) == 1 and "image" in columns:
        names = ["image"]
    missing = [name for name in ("case", *names) if name not in columns]
    if not rows or missing:
        raise InputError(
            str(path),
            expected=f"rows with the columns case, {', '.join(names)}",
            got=f"columns {', '.join(map(str, columns)) or 'none'}",
        )
    jobs: dict[str, Source] = {}
    for line, row in enumerate(rows, start=2):
        where = f"{path}, line {line}"
        case = (row["case"] or "").strip()
        cells = {name: cell for name in names if (cell := (row[name] or "").strip())}
        spared = plan.training.channel_dropout > 0 and cells
        if not case or (len(cells) < len(names) and not spared):
            raise InputError(
                where, expected="a value in each column", got="a gap",
                cure="Only a model trained with channel_dropout can do without a channel.",
            )  # fmt: skip
        case = os.path.normpath(case)
        if case in jobs:
            raise InputError(where, expected="a new case id", got=f"'{case}' again")
        if Path(case).is_absolute() or ".." in Path(case).parts or case == ".":
            raise InputError(where, expected="a name below --out", got=case)
        files = {name: path.parent / cell for name, cell in cells.items()}
        jobs[case] = files if len(plan.channels) > 1 else study_or_path(*files.values())
    return list(jobs.items())


def _unnumbered(named: dict[str, Path | Study]) -> dict[str, Path | Study]:
    """``case_0000`` becomes ``case``, unless another scan has that name."""
    found = {case: _CHANNEL_SUFFIX.match(case) for case in named}
    return {
        match["case"]
        if match and int(match["channel"]) == 0 and match["case"] not in named
        else case: named[case]
        for case, match in found.items()
    }


def _by_channel(named: dict[str, Path], plan: Plan) -> list[Job]:
    names = [channel.name for channel in plan.channels]
    grouped: dict[str, dict[str, Path]] = {}
    whole: list[Job] = []
    for case, file in named.items():
        match = _CHANNEL_SUFFIX.match(case)
        if match is None:
            # One file that holds all channels; reading checks how many there are.
            whole.append((case, file))
            continue
        number = int(match["channel"])
        if number >= len(names):
            raise InputError(
                str(file),
                expected=f"channels _0000 to _{len(names) - 1:04d} ({', '.join(names)})",
                got=f"_{match['channel']}",
            )
        grouped.setdefault(match["case"], {})[names[number]] = file
    for case, files in grouped.items():
        if case in named:
            raise InputError(
                f"case id '{case}'",
                expected="one scan",
                got=f"{named[case]} and files per channel",
                cure="Rename one of them, or give them in two calls.",
            )
        missing = [name for name in names if name not in files]
        if missing and plan.training.channel_dropout == 0:
            raise InputError(
                f"case '{case}'",
                expected=f"a file for each of {', '.join(names)}",
                got=f"none for {', '.join(missing)}",
                cure="Name them case_0000, case_0001 ... in the order of the channels.",
            )
    joined = [
        (case, {name: parts[name] for name in names if name in parts})
        for case, parts in grouped.items()
    ]
    return [*whole, *joined]
