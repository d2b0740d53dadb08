"""Segment files and folders of scans: paths in, masks out."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from medseg.core.errors import FileError, InputError, MedsegError, OutputError
from medseg.core.plan import Plan
from medseg.core.scan import Scan
from medseg.io.dicom_studies import Study
from medseg.io.formats import case_name, find_scans
from medseg.workflows.api import Model, Result, load_model
from medseg.workflows.reading import ScanReader, read_ahead
from medseg.workflows.segment import check_grid, expected_labels, paths_of, save_scan, settled
from medseg.workflows.studies import (
    ReadOptions,
    named_studies,
    studies_below,
    studies_in_file,
    study_or_path,
)

Progress = Callable[[int, int, str], None]
_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_log = logging.getLogger(__name__)

# One case: its id, and a path, a path per channel name, or a DICOM study.
Source = Path | dict[str, Path] | Study
Job = tuple[str, Source]


def predict(
    model: str | Path | Model,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    device: str = "auto",
    labels: str | Sequence[str] | None = None,
    cases: str | Path | None = None,
    progress: Progress | None = None,
    **reading: Unpack[ReadOptions],
) -> dict[str, Any]:
    """Segment scans into ``out/<case>.nii.gz``, each with a JSON sidecar.

    Args:
        model: A package folder, or a model that is loaded already.
        inputs: Scan files and folders of them. The case id is the path below their common
            folder, without the suffix. DICOM: a folder tree, a zip or a DICOMDIR; one case
            per study, named by the folder that holds it.
        out: Folder for the masks.
        device: As in ``load_model``.
        labels: Names of the labels to keep, in a list or with commas; None keeps all.
        cases: A CSV table with the column ``case`` and one column per channel, instead of
            ``inputs``.
        progress: Called with (done, total, case id).
        reading: For DICOM studies ``series`` (``"auto"``, a number, a UID or a pattern; None
            where only one is usable) and ``accept_gaps`` (interpolate between slices); for
            tilted and sheared scans ``grid`` (as in ``Model.predict``); and ``save_scan``
            (write each scan as ``<case>_scan.nii.gz``, on the grid of its mask).

    Returns:
        ``{"done": {case: path}, "failed": {case: message}, "seconds": s}``.

    Raises:
        InputError: There is nothing to segment, two inputs have one id, a mask would replace
            a scan, or every case failed.
        PackageError: The model is damaged.
    """
    loaded = model if isinstance(model, Model) else load_model(model, device)
    out = Path(out)
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    expected_labels(loaded.plan, labels)
    if unknown := sorted(set(reading) - set(ReadOptions.__annotations__)):
        raise TypeError(f"predict() has no argument '{unknown[0]}'")
    grid, with_scan = reading.get("grid", "auto"), reading.get("save_scan", False)
    check_grid(grid)
    if cases is not None:
        if inputs:
            raise InputError("--cases", expected="a table or scans, not both", got="both")
        jobs = read_case_table(Path(cases), loaded.plan)
    else:
        jobs = find_cases([Path(path) for path in inputs], loaded.plan, out=out)
    jobs = [(case, _wish(source, reading)) for case, source in jobs]
    work = _Work(loaded, out, labels, grid=grid, save_scan=with_scan)
    _refuse_to_overwrite(jobs, out, with_scan=with_scan)
    _make_folder(out)
    started = time.perf_counter()
    done: dict[str, str] = {}
    failed: dict[str, str] = {}
    errors: list[Exception] = []
    with closing(_segment_all(work, jobs)) as outcomes:
        for number, (case, error, path) in enumerate(outcomes, start=1):
            if error is None:
                done[case] = str(path)
            else:
                failed[case] = _explain(error)
                errors.append(error)
                _log.warning("%s: %s", case, failed[case])
            if progress is not None:
                progress(number, len(jobs), case)
    if errors and not done:
        _raise_all_failed(errors, len(jobs))
    return {"done": done, "failed": failed, "seconds": round(time.perf_counter() - started, 3)}


def _wish(source: Source, reading: ReadOptions) -> Source:
    if isinstance(source, Study):
        gaps = reading.get("accept_gaps", False)
        return source.wanting(reading.get("series"), accept_gaps=gaps)
    return source


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
            cure="NIfTI, NRRD, MHA, DICOM, PNG, JPEG and TIFF are read.",
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
        return list(named.items())
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
        cells = {name: (row[name] or "").strip() for name in names}
        if not case or not all(cells.values()):
            raise InputError(where, expected="a value in each column", got="a gap")
        case = os.path.normpath(case)
        if case in jobs:
            raise InputError(where, expected="a new case id", got=f"'{case}' again")
        if Path(case).is_absolute() or ".." in Path(case).parts or case == ".":
            raise InputError(where, expected="a name below --out", got=case)
        files = {name: path.parent / cell for name, cell in cells.items()}
        jobs[case] = files if len(plan.channels) > 1 else study_or_path(*files.values())
    return list(jobs.items())


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
        if missing:
            raise InputError(
                f"case '{case}'",
                expected=f"a file for each of {', '.join(names)}",
                got=f"none for {', '.join(missing)}",
                cure="Name them case_0000, case_0001 ... in the order of the channels.",
            )
    joined = [(case, {name: parts[name] for name in names}) for case, parts in grouped.items()]
    return [*whole, *joined]


def _refuse_to_overwrite(jobs: Sequence[Job], out: Path, *, with_scan: bool) -> None:
    """Scans are never replaced by masks, whichever way ``--out`` is spelled."""
    scans = {path.resolve() for _, source in jobs for path in paths_of(source)}
    for case, _ in jobs:
        for written in (_mask_path(out, case), *([_scan_path(out, case)] if with_scan else [])):
            if written.resolve() in scans:
                raise InputError(
                    f"--out {out}",
                    expected="a folder where masks replace no scan",
                    got=f"{written}, which is a scan",
                    cure="Choose another --out.",
                )


def _mask_path(out: Path, case: str) -> Path:
    return out / f"{case}.nii.gz"


def _scan_path(out: Path, case: str) -> Path:
    return out / f"{case}_scan.nii.gz"


@dataclass(frozen=True)
class _Work:
    """What is done to each case."""

    model: Model
    out: Path
    labels: str | Sequence[str] | None
    grid: str
    save_scan: bool

    def read(self, reader: ScanReader, job: Job) -> tuple[Source, Scan]:
        source = settled(job[1], self.model.plan)
        return source, reader.read(source, self.model.plan)

    def segment(self, source: Source, scan: Scan) -> Result:
        return self.model.predict(source, labels=self.labels, grid=self.grid, scan=scan)

    def save(self, case: str, source: Source | Scan, result: Result) -> Path:
        if self.save_scan:
            save_scan(source, self.model.plan, result.prediction, _scan_path(self.out, case))
        return result.save(_mask_path(self.out, case))


Outcome = tuple[str, Exception | None, Path | None]


def _segment_all(work: _Work, jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
    """Yield (case, error or None, path).

    While the network works on one case, the next is read and the mask of the last written.
    """

    def save(case: str, source: Source | Scan, result: Result) -> Outcome:
        try:
            return case, None, work.save(case, source, result)
        except Exception as error:  # noqa: BLE001 - one case must not stop the others
            return case, error, None

    with (
        ThreadPoolExecutor(max_workers=1) as writer,
        closing(read_ahead(jobs, work.read)) as readings,
    ):
        waiting: Future[Outcome] | None = None
        for (case, _), reading in readings:
            try:
                source, scan = reading.result()
                result = work.segment(source, scan)
            except Exception as error:  # noqa: BLE001 - one case must not stop the others
                _log.debug("case %s", case, exc_info=True)
                yield case, error, None
                continue
            if waiting is not None:
                yield waiting.result()
            # Slices that were bridged are written as they are, so read once more; else the
            # scan is at hand.
            slices = result.prediction.slices
            again = not work.save_scan or (slices is not None and not slices.even)
            waiting = writer.submit(save, case, source if again else scan, result)
            del scan, reading
        if waiting is not None:
            yield waiting.result()


def _explain(error: Exception) -> str:
    if isinstance(error, MedsegError):
        return str(error)
    return " ".join(f"fault of medseg: {type(error).__name__}: {error}".split())


def _raise_all_failed(errors: list[Exception], total: int) -> None:
    first = errors[0]
    if not isinstance(first, MedsegError):
        raise first
    if total == 1:
        raise first
    raise type(first)(
        first.what,
        expected=first.expected,
        got=first.got,
        cure=f"{first.cure} All {total} cases failed; this is the first.".strip(),
    ) from first


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"--out {out}", expected="a folder", got=error.strerror or str(error)
        ) from error
