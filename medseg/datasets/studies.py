"""Cases that are parts of one DICOM study belong to one patient."""

from __future__ import annotations

from dataclasses import replace

from medseg.core.errors import MedsegError
from medseg.datasets.dataset import Case
from medseg.io.formats import SCAN_SUFFIXES, is_dicom_source


def grouped_by_study(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Put cases whose scans are of one DICOM study into one group; stated groups stay.

    The group is called as its first case is, so that no UID gets out of the files.
    """
    studies: dict[str, list[Case]] = {}
    for case in cases:
        if uid := _study_uid(case):
            studies.setdefault(uid, []).append(case)
    groups: dict[str, str] = {}
    for members in studies.values():
        if len(members) > 1:
            name = next((case.group for case in members if case.group), members[0].id)
            groups |= {case.id: name for case in members}
    return tuple(
        replace(case, group=groups[case.id]) if case.id in groups and not case.group else case
        for case in cases
    )


def _study_uid(case: Case) -> str:
    path = case.images[0]
    if path.name.lower().endswith(SCAN_SUFFIXES) and not path.is_dir():
        return ""
    # It takes a while to load, and most scans are no DICOM.
    from medseg.io.dicom_studies import study_uid_of

    try:
        return study_uid_of(path) if path.is_dir() or is_dicom_source(path) else ""
    except MedsegError:
        # Whoever reads the case tells what is wrong with it.
        return ""
