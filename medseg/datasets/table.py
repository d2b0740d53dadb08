"""Read a table of cases: CSV, TSV or JSON, with paths relative to the table.

CSV columns (any order, capitals do not matter):

``case``             name of the case; the image's file name where it is missing
``image``            the scan, for DICOM its folder or zip; or a column per channel:
                     ``image_T1``, ``image_FLAIR``
``series``           optional: which DICOM series of the image: its number, UID, a pattern for its
                     description; ``series_T1``, ``series_FLAIR`` with a column per channel
``label``            the mask, also a DICOM-SEG or RTSTRUCT file; or a column per organ:
                     ``label_liver``, ``label_spleen``
``group``            optional: patient or site, never on both sides of a split; without it scans
                     of one DICOM study are a group
``split``            optional: ``train``, ``val``, ``test`` (left out), or the number of the fold
                     in which the case is judged
``annotated``        optional: the labels that were looked for in this case, ``liver;spleen``; empty
                     means all of them

A field of a channel may be empty in some rows: the case has no such image.

The structures of DICOM-SEG and RTSTRUCT files are known by their names, whatever their numbers;
with a look-up file, those count that it names.

What the values mean stands in ``NAME.labels.csv`` or ``labels.csv`` beside the table. JSON holds
the same rows under ``cases``, with ``labels`` (regions and ``ignore`` too, as nnU-Net has them) and
``channel_names`` beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.core.errors import DatasetError
from medseg.core.labels import LabelSet
from medseg.datasets.channels import guess_channels
from medseg.datasets.dataset import Case, Dataset, OrganMask, Region, Split, listing
from medseg.datasets.description import (
    channels_of,
    check_ids,
    distinct,
    modality_of,
    read_json,
    splits_in,
)
from medseg.datasets.lookup import (
    LOOKUP_NAMES,
    find_labels,
    labels_in_masks,
    name_structures,
    read_rows,
)
from medseg.datasets.organs import number_organs
from medseg.datasets.scheme import meaning_of, with_annotations
from medseg.datasets.studies import grouped_by_study
from medseg.io.formats import case_name

TABLE_SUFFIXES = (".csv", ".tsv", ".json")
_CASE_COLUMNS = ("case", "case_id", "id", "name")
_LABEL_COLUMNS = ("label", "mask", "segmentation", "seg")
_GROUP_COLUMNS = ("group", "patient", "subject", "site")
_TRAIN, _VALIDATION, _TEST = {"train", "training"}, {"val", "validation", "valid"}, {"test"}
_KNOWN = "'image' (or 'image_T1' ...) and 'label' (or 'label_liver' ...)"


def read_table(path: Path, *, lenient: bool = False) -> Dataset:
    """Read a table of cases.

    Args:
        path: The table.
        lenient: Take cases whose files are missing too, for a check that tells of them.

    Raises:
        DatasetError: A column or a file is missing, or the table is malformed.
    """
    raw, rows = _content(path)
    image_columns = _columns(rows[0], "image")
    whole = _one(rows[0], _LABEL_COLUMNS) is not None
    organ_columns = {} if whole else _columns(rows[0], "label", most=0)
    if not image_columns or not (organ_columns or whole):
        raise DatasetError(str(path), expected=f"columns {_KNOWN}", got=", ".join(rows[0])[:120])
    stated, regions, ignore = _meaning(raw, path=path)
    labels, values = stated, dict[str, int]()
    if organ_columns:
        labels, values = number_organs(organ_columns, stated=stated, where=str(path))
    kept = [row for row in rows if row.get("split", "").casefold() not in _TEST]
    maker = _Maker(path, image_columns, {organ_columns[n]: values[n] for n in organ_columns})
    cases = check_ids([maker.case(row, lenient=lenient) for row in kept], where=str(path))
    cases, labels = name_structures(grouped_by_study(cases), labels, where=str(path))
    channels, modalities = _channels(raw, image_columns, path=path, cases=cases)
    labels = labels if labels is not None else labels_in_masks(cases, where=str(path))
    told = [row.get("annotated") or None for row in kept]
    cases = with_annotations(cases, told, labels, regions, where=str(path))
    return Dataset(
        name=str(raw.get("name") or path.stem),
        folder=path.parent,
        channels=channels,
        modalities=modalities,
        labels=labels,
        cases=cases,
        splits=_splits(kept, cases, path=path) or splits_in(path.parent),
        licence=str(raw.get("licence") or raw.get("license") or ""),
        layout="table",
        regions=regions,
        ignore=ignore,
    )


def _meaning(
    raw: dict[str, Any], *, path: Path
) -> tuple[LabelSet | None, tuple[Region, ...], int | None]:
    if "labels" in raw:
        return meaning_of(raw, path=path)
    return _beside(path), (), None


class _Maker:
    """Makes cases of rows."""

    def __init__(self, path: Path, images: dict[str, str], organs: dict[str, int]) -> None:
        self.path, self.images, self.organs = path, images, organs

    def case(self, row: dict[str, str], *, lenient: bool) -> Case:
        label_column = _one(row, _LABEL_COLUMNS)
        label = row.get(label_column, "") if label_column else ""
        named = [row.get(column, "") for column in self.images.values()]
        gaps = tuple(number for number, text in enumerate(named) if not text)
        gaps = gaps if len(gaps) < len(named) else ()
        images = tuple(self._file(text) for n, text in enumerate(named) if n not in gaps)
        organs = [
            OrganMask(value, self._file(row[column]))
            for column, value in self.organs.items()
            if row.get(column)
        ]
        case = Case(
            _text(row, _CASE_COLUMNS) or case_name(images[0]),
            images,
            self._file(label) if label else None,
            group=_text(row, _GROUP_COLUMNS),
            series=self._series(row),
            organs=tuple(sorted(organs, key=lambda organ: organ.value)),
            missing=gaps,
        )
        missing = [str(file) for file in case.files if not file.exists()]
        if not lenient and (missing or not case.masks):
            raise DatasetError(
                f"{self.path}, case {case.id}",
                expected="files that are there, relative to the table",
                got=f"no file {listing(missing)}" if missing else "no label",
                cure="Correct the row or take it out.",
            )
        return case

    def _series(self, row: dict[str, str]) -> tuple[str, ...]:
        stated = {column.casefold().replace(":", "_"): text for column, text in row.items()}
        own = [
            stated.get(f"series_{name}".casefold(), "")
            for name, column in self.images.items()
            if row.get(column)
        ]
        series = tuple(text or stated.get("series", "") for text in own)
        return series if any(series) else ()

    def _file(self, text: str) -> Path:
        # An empty field must not come to the table's own folder: a folder may be a scan.
        return self.path.parent / (text.replace("\\", "/") or "(no file)")


def _content(path: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    if path.suffix.lower() != ".json":
        return {}, read_rows(path)
    raw = read_json(path)
    if isinstance(raw, list):
        raw = {"cases": raw}
    rows = raw.get("cases") if isinstance(raw, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(
            str(path), expected='a list of objects under "cases"', got=type(rows).__name__,
            cure='For example {"labels": {"1": "liver"}, "cases": [{"image": "a.nii.gz", '
            '"label": "b.nii.gz"}]}.',
        )  # fmt: skip
    return raw, [_flat(row) for row in rows]


def _flat(row: dict[str, Any]) -> dict[str, str]:
    """A JSON row as a CSV row: ``{"image": {"T1": "a"}}`` becomes ``{"image_t1": "a"}``."""
    flat: dict[str, str] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key.casefold()}_{name}": str(text) for name, text in value.items()}
        elif key.casefold() == "annotated" and isinstance(value, list):
            flat["annotated"] = ";".join(str(name) for name in value)
        elif isinstance(value, list):
            flat |= {f"{key.casefold()}_{number}": str(text) for number, text in enumerate(value)}
        elif value is not None:
            flat[key.casefold()] = str(value)
    return flat


def _columns(row: dict[str, str], kind: str, *, most: int = 1) -> dict[str, str]:
    """Columns of images or organs by their name: ``{"t1": "image_t1"}``; ``image`` alone is ""."""
    plain = {"": kind} if most and kind in row else {}
    named = {c[len(kind) + 1 :]: c for c in row if c[: len(kind) + 1] in (f"{kind}_", f"{kind}:")}
    return plain or named


def _one(row: dict[str, str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _text(row: dict[str, str], names: Sequence[str]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _beside(path: Path) -> LabelSet | None:
    own = [f"{path.stem}.labels{suffix}" for suffix in TABLE_SUFFIXES]
    others = [name for name in (*own, *LOOKUP_NAMES) if name != path.name]
    return find_labels(path.parent, names=others)


def _channels(
    raw: dict[str, Any], columns: dict[str, str], *, path: Path, cases: tuple[Case, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if raw.get("modality") or raw.get("channel_names"):
        names = channels_of(raw, path=path)
        return distinct(names), tuple(modality_of(name) for name in names)
    if "" in columns or all(name.isdecimal() for name in columns):
        return guess_channels(cases)
    return tuple(columns), tuple(modality_of(name) for name in columns)


def _splits(
    rows: list[dict[str, str]], cases: tuple[Case, ...], *, path: Path
) -> tuple[Split, ...] | None:
    """Folds from the column ``split``: one of train and val, or one per number."""
    sides = [row.get("split", "").casefold() for row in rows]
    if not any(sides):
        return None
    ids = [case.id for case in cases]
    odd = sorted(set(sides) - _TRAIN - _VALIDATION)
    if not odd:
        train = tuple(name for name, side in zip(ids, sides, strict=True) if side in _TRAIN)
        judged = tuple(name for name, side in zip(ids, sides, strict=True) if side in _VALIDATION)
        return (Split(train, judged),)
    numbers = {side: int(side.removeprefix("fold").strip(" _")) for side in odd
               if side.removeprefix("fold").strip(" _").isdecimal()}  # fmt: skip
    if len(numbers) != len(set(sides)) or len(numbers) < 2:
        raise DatasetError(
            f"{path}, column 'split'",
            expected="train, val and test, or the number of a fold in every row",
            got=listing([f"'{side}'" for side in sorted(set(sides))]),
        )
    return tuple(
        Split(
            tuple(name for name, side in zip(ids, sides, strict=True) if side != fold),
            tuple(name for name, side in zip(ids, sides, strict=True) if side == fold),
        )
        for fold in sorted(numbers, key=lambda side: numbers[side])
    )
