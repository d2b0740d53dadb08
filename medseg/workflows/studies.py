"""DICOM among the inputs of a prediction: one case per study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medseg.core.errors import MedsegError
from medseg.io.dicom_studies import Study, find_studies
from medseg.io.formats import case_name, is_dicom_source


def studies_below(folder: Path) -> list[Study]:
    """The DICOM studies in a folder tree, also in the zips that lie in it."""
    studies = find_studies(folder)
    for archive in sorted(folder.rglob("*.zip")):
        if not any(part.startswith(".") for part in archive.relative_to(folder).parts):
            studies += find_studies(archive)
    return studies


def studies_in_file(path: Path) -> list[Study]:
    """The studies of a DICOM file, a zip or a DICOMDIR; none where reading must fail."""
    try:
        return find_studies(path) if is_dicom_source(path) else []
    except MedsegError:
        # The file stays a case, so that its error is told where the others' are.
        return []


def study_or_path(path: Path) -> Study | Path:
    """The study that a path in a table names, so that ``--series`` holds for it; else the path."""
    found = studies_in_file(path)
    return found[0] if len(found) == 1 else path


def named_studies(studies: list[Study], base: Path) -> Iterator[tuple[str, Study]]:
    """Case ids of studies: their path below ``base``; numbered where they share one."""
    paths = [study.path for study in studies]
    for position, study in enumerate(studies):
        name = study.path.name if study.path.is_dir() else case_name(study.path)
        inside = study.path.parent.relative_to(base) if study.path != base else Path()
        case = (inside / name).as_posix()
        if paths.count(study.path) > 1:
            case = f"{case}_{paths[:position].count(study.path) + 1}"
        yield case, study
