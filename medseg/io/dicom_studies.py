"""Studies in a folder tree: which DICOM files belong together, and what to call them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.core.errors import FileError
from medseg.core.geometry import FloatTriple
from medseg.core.scan import Scan
from medseg.io.dicom import choose_series
from medseg.io.dicom_header import read_instance
from medseg.io.dicom_parts import list_parts
from medseg.io.dicom_records import Instance
from medseg.io.dicom_series import SeriesInfo, describe_series, read_headers, read_series


@dataclass(frozen=True)
class Study:
    """One study, and which of its series is wanted.

    Attributes:
        path: The folder that holds all its files; a zip or a single file itself.
        series: Its series.
        selector: Which of them, as for ``choose_series``.
        accept_gaps: Whether uneven gaps are bridged.
    """

    path: Path
    series: tuple[SeriesInfo, ...] = field(repr=False)
    selector: str | None = None
    accept_gaps: bool = False

    def wanting(self, selector: str | None, *, accept_gaps: bool) -> Study:
        """The same study with another wish."""
        return replace(self, selector=selector, accept_gaps=accept_gaps)

    def choose(
        self,
        *,
        modality: str = "",
        spacing_mm: FloatTriple | None = None,
        words: Sequence[str] = (),
    ) -> SeriesInfo:
        """The series that is wanted; ``auto`` wants this modality, voxel size and these words.

        Raises:
            InputError: None fits, or several fit equally well.
        """
        return choose_series(
            self.series, self.selector, modality=modality, spacing_mm=spacing_mm, words=words
        )

    def read(self, info: SeriesInfo) -> Scan:
        """One of its series as a scan.

        Raises:
            FileError: Pixels cannot be read.
            GeometryError: The slices make no grid, or their gaps are uneven.
        """
        return read_series(info, accept_gaps=self.accept_gaps)


def find_studies(source: str | Path) -> list[Study]:
    """The studies with images in a file, a folder tree, a zip or a DICOMDIR, by their path.

    Raises:
        FileError: The source is missing, is not to be trusted, or its only file is damaged.
    """
    source = Path(source)
    groups: dict[str, list[Instance]] = {}
    home: dict[str, str] = {}
    for instance in read_headers(source):
        # A series is never torn apart, whatever its slices say of their study.
        study = home.setdefault(instance.series_uid, instance.study_uid)
        groups.setdefault(study, []).append(instance)
    studies = []
    for group in groups.values():
        path = _home(source, group)
        series = describe_series(group, path)
        # Reports, plans and structures alone are no case.
        if any(info.slices for info in series):
            studies.append(Study(path, tuple(series)))
    return sorted(studies, key=lambda study: (str(study.path), study.series[0].study_uid))


def study_uid_of(source: Path) -> str:
    """UID of the study of the first DICOM file with an image; "" where there is none.

    Reads no more headers than it must.

    Raises:
        FileError: The source is missing, or is not to be trusted.
    """
    for part in list_parts(source):
        try:
            instance = read_instance(part)
        except FileError:
            continue
        if instance is not None and instance.slices:
            return instance.study_uid
    return ""


def _home(source: Path, group: Sequence[Instance]) -> Path:
    if not source.is_dir():
        return source
    return Path(os.path.commonpath([instance.part.path.parent for instance in group]))
