"""Which file belongs to which: masks, references and scans by case id.

The case id is the path below the folder without the suffix, with ``/`` between folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.errors import FileError, InputError
from medseg.io.formats import case_name, find_scans


@dataclass(frozen=True)
class MaskPair:
    """The files of one case; no prediction where it is missing."""

    case: str
    reference: Path
    prediction: Path | None


def label_folder(references: Path) -> Path:
    """The folder of the references: a dataset stands for its ``labelsTr``."""
    inner = references / "labelsTr"
    return inner if (references / "dataset.json").is_file() and inner.is_dir() else references


def pair_masks(
    predictions: Path, references: Path, *, cases: Sequence[str] | None, skip: Path | None
) -> tuple[list[MaskPair], list[str]]:
    """Pair the files by case id; also the ids of predictions that have no reference."""
    wanted = index_by_case(references, "references")
    found = index_by_case(predictions, "predictions", skip=skip)
    if references.is_file() and predictions.is_file():
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


def index_by_case(place: Path, what: str, *, skip: Path | None = None) -> dict[str, Path]:
    """The masks of a folder by case id."""
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
    return found


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
