"""Which file belongs to which: masks, references and scans by case id.

The case id is the path below the folder without the suffix, with ``/`` between folders. A
folder ``segmentations`` (``masks``, ``organs`` ...) below the top holds one file per organ,
and is one case, by the id of the folder that it lies in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.errors import FileError, InputError
from medseg.io.formats import case_name, find_scans

_ORGAN_FOLDERS = frozenset({"segmentations", "segmentation", "masks", "labels", "organs"})
# After the case id: the scan, maps, a folder with a mask per label, the picture.
_COMPANION = re.compile(
    r"_scan$|_probability_[\w.-]+$|_entropy$|_disagreement$|_labels/[^/]+$|_preview$"
)


@dataclass(frozen=True)
class OrganFiles:
    """The masks of one case, a file per organ; they may overlap.

    Attributes:
        folder: That they lie in.
        files: By the name of the organ.
    """

    folder: Path
    files: Mapping[str, Path]

    def __str__(self) -> str:
        return str(self.folder)


MaskSource = Path | OrganFiles


@dataclass(frozen=True)
class MaskPair:
    """The files of one case; no prediction where it is missing."""

    case: str
    reference: MaskSource
    prediction: MaskSource | None


def label_folder(references: Path) -> Path:
    """The folder of the references: a dataset stands for its ``labelsTr``."""
    inner = references / "labelsTr"
    return inner if (references / "dataset.json").is_file() and inner.is_dir() else references


def pair_masks(
    predictions: Path,
    references: Path,
    *,
    cases: Sequence[str] | None,
    skip: Path | None,
    organs: bool = False,
) -> tuple[list[MaskPair], list[str]]:
    """Pair the files by case id; also the ids of predictions that have no reference."""
    wanted = index_masks(references, "references", organs=organs)
    found = index_masks(predictions, "predictions", skip=skip, organs=organs)
    if _names_one_case(references, wanted) and _names_one_case(predictions, found):
        # Two files that the user names belong together, whatever they are called.
        found = dict(zip(wanted, found.values(), strict=True))
    if cases is not None:
        unknown = sorted(set(cases) - set(wanted))
        if unknown:
            raise InputError(
                "cases", expected=f"ids of references in {references}, such as {_some(wanted)}",
                got=_some(unknown), cure="An id is the path below the folder without its suffix.",
            )  # fmt: skip
        wanted = {case: wanted[case] for case in sorted(set(cases))}
        found = {case: path for case, path in found.items() if case in wanted}
    if not set(wanted) & set(found):
        raise InputError(
            f"{predictions} and {references}", expected="masks of the same case ids in both",
            got=f"{_some(found)} against {_some(wanted)}",
            cure="An id is the path below the folder without its suffix; rename one side.",
        )  # fmt: skip
    pairs = [MaskPair(case, path, found.get(case)) for case, path in wanted.items()]
    return pairs, sorted(set(found) - set(wanted))


def index_masks(
    place: Path, what: str, *, skip: Path | None = None, organs: bool = False
) -> dict[str, MaskSource]:
    """The masks of a folder by case id.

    Args:
        place: A folder, or one mask.
        what: They are called in errors.
        skip: A file that is no mask.
        organs: Take every folder with masks for one case with a file per organ.
    """
    if place.is_dir():
        found = _organ_cases(place, every=organs)
        if found:
            return dict(found)
    return dict(index_by_case(place, what, skip=skip))


def index_by_case(place: Path, what: str, *, skip: Path | None = None) -> dict[str, Path]:
    """The masks of a folder by case id, one file for each."""
    if place.is_file():
        return {case_name(place): place}
    if not place.is_dir():
        raise FileError(f"{what} {place}", expected="a folder of masks", got="no such folder")
    found: dict[str, Path] = {}
    for case, path in _named(place, masks=what != "images"):
        if skip is not None and path.resolve() == skip.resolve():
            continue
        if case in found:
            raise InputError(
                f"{what}, case {case}", expected="one file per case id",
                got=f"{found[case].name} and {path.name}", cure="Move one of them away.",
            )  # fmt: skip
        found[case] = path
    return _without_companions(found) if what != "images" else found


def _without_companions(found: dict[str, Path]) -> dict[str, Path]:
    """Without what ``predict`` writes beside the mask of a case, which is no mask of a case."""

    def is_companion(case: str) -> bool:
        return any(case[: match.start()] in found for match in _COMPANION.finditer(case))

    return {case: path for case, path in found.items() if not is_companion(case)}


def _organ_cases(place: Path, *, every: bool) -> dict[str, OrganFiles]:
    """The folders with a file per organ, by case id."""
    folders: dict[Path, dict[str, Path]] = {}
    for path in find_scans(place):
        named = path.parent.name.casefold() in _ORGAN_FOLDERS and path.parent != place
        if named or every:
            files = folders.setdefault(path.parent, {})
            organ = case_name(path)
            if organ in files:
                raise InputError(
                    f"{path.parent}, organ {organ}", expected="one file per organ",
                    got=f"{files[organ].name} and {path.name}", cure="Move one of them away.",
                )  # fmt: skip
            files[organ] = path
    found: dict[str, OrganFiles] = {}
    for folder, files in folders.items():
        named = folder.name.casefold() in _ORGAN_FOLDERS and folder != place
        home = folder.parent if named else folder
        case = home.relative_to(place).as_posix() if home != place else place.resolve().name
        if case in found:
            raise InputError(
                f"case {case}", expected="one folder of organ masks",
                got=f"{found[case].folder} and {folder}", cure="Move one of them away.",
            )  # fmt: skip
        found[case] = OrganFiles(folder, files)
    return found


def _names_one_case(place: Path, found: Mapping[str, MaskSource]) -> bool:
    """Whether the user named the masks of one case, and not a folder of cases."""
    if place.is_file():
        return True
    case, masks = next(iter(found.items()), ("", None))
    return len(found) == 1 and isinstance(masks, OrganFiles) and case == place.resolve().name


def _named(place: Path, *, masks: bool) -> list[tuple[str, Path]]:
    """Files by their suffix; for masks, where there are none, what DICOM holds of them."""
    scans = find_scans(place)
    if scans or not masks:
        return [((p.parent.relative_to(place) / case_name(p)).as_posix(), p) for p in scans]
    # It takes a while to load, and most masks are no DICOM.
    from medseg.io.dicom_masks import find_dicom_masks

    return find_dicom_masks(place)


def _some(names: Mapping[str, Any] | Sequence[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return (", ".join(listed[:3]) or "none") + more
