"""Label names that lie beside a dataset: ``labels.csv``, ``label_names.csv``, ``dseg.tsv`` ...

Reference for ``dseg.tsv``: Brain Imaging Data Structure 1.9, "Common image-derived labels":
columns ``index`` and ``name``.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg.core.errors import DatasetError, LabelError, MedsegError
from medseg.core.labels import Label, LabelSet
from medseg.datasets.dataset import Case
from medseg.datasets.description import labels_of, read_json
from medseg.datasets.reading import read_case_mask
from medseg.io.formats import SCAN_SUFFIXES, is_dicom_source, read_label_names

LOOKUP_NAMES = tuple(
    f"{stem}.{suffix}"
    for stem in ("labels", "label_names", "dseg")
    for suffix in ("json", "csv", "tsv")
)
_VALUE_COLUMNS = ("value", "index", "label number", "label value", "number", "label", "id")
_NAME_COLUMNS = ("name", "label name", "structure", "organ", "region")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table with a head line; fields parted by commas, semicolons or tabs.

    Heads come in small letters, but for the names of channels and organs in them.

    Raises:
        DatasetError: The file is no such table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            str(path), expected="a table in UTF-8", got=getattr(error, "strerror", "") or str(error)
        ) from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) < 2:
        raise DatasetError(str(path), expected="a head line and rows", got=f"{len(lines)} lines")
    delimiter = max("\t;,", key=lines[0].count)
    heads, *rows = csv.reader(lines, delimiter=delimiter)
    names = [_head(head.strip()) for head in heads]
    long = next((number for number, row in enumerate(rows, 2) if len(row) > len(names)), None)
    if long is not None:
        raise DatasetError(
            f"{path}, row {long}", expected=f"{len(names)} fields", got=str(len(rows[long - 2])),
            cure="Put fields that hold the delimiter into quotes.",
        )  # fmt: skip
    return [dict(zip(names, (field.strip() for field in row), strict=False)) for row in rows]


def _head(text: str) -> str:
    """In small letters, but for the name of a channel or organ: ``image_T1``, ``label_Liver``."""
    kind, name = text[:6].casefold(), text[6:]
    return f"{kind}{name}" if kind in ("image_", "image:", "label_", "label:") else text.casefold()


def find_labels(folder: Path, *, names: Iterable[str] = LOOKUP_NAMES) -> LabelSet | None:
    """The labels that a look-up file in the folder names; None where there is no such file.

    Raises:
        DatasetError: The file is malformed.
    """
    for name in names:
        if (folder / name).is_file():
            return read_labels(folder / name)
    return None


def read_labels(path: Path) -> LabelSet:
    """Read a look-up file: a table with a column of values and one of names, or JSON.

    A name that stands twice gets its value behind it.

    Raises:
        DatasetError: The file is malformed.
    """
    if path.suffix.lower() == ".json":
        raw = read_json(path)
        inner = raw.get("labels", raw) if isinstance(raw, dict) else raw
        return labels_of({"labels": inner}, path=path)
    rows = read_rows(path)
    value_column = next((c for c in _VALUE_COLUMNS if c in rows[0]), None)
    name_column = next((c for c in _NAME_COLUMNS if c in rows[0] and c != value_column), None)
    if value_column is None or name_column is None:
        raise DatasetError(
            str(path), expected="columns 'value' and 'name'", got=", ".join(rows[0])[:80]
        )
    often = Counter(row.get(name_column, "") for row in rows)
    names: dict[int, str] = {}
    for row in rows:
        text, name = row.get(value_column, ""), row.get(name_column, "")
        if not text.isdecimal() or not name or int(text) in names:
            raise DatasetError(
                str(path), expected="one whole number and one name per row, each number once",
                got=f"'{text}', '{name}'",
            )  # fmt: skip
        names[int(text)] = f"{name} {text}" if often[name] > 1 else name
    return _label_set(names, where=str(path))


def labels_in_masks(cases: Sequence[Case], *, where: str) -> LabelSet:
    """Labels from the masks themselves: names from a NIfTI header, else ``label 1`` ...

    Reads every mask; one that cannot be read is left out here.

    Raises:
        DatasetError: No mask holds a label.
    """
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        found = set().union(*pool.map(_values, cases))
    found.discard(0)
    if not found:
        raise DatasetError(where, expected="masks that hold labels", got="none")
    known: dict[int, str] = {}
    for case in cases[:1]:
        stated = _names_in(case)
        if stated is not None:
            known = dict(zip(stated.values, stated.names, strict=True))
    names = {value: known.get(value, f"label {value}") for value in found}
    return _label_set(names, where=where)


def name_structures(
    cases: tuple[Case, ...], stated: LabelSet | None, *, where: str
) -> tuple[tuple[Case, ...], LabelSet | None]:
    """Give the structures of DICOM masks their values by name, the same in every case.

    Args:
        cases: All cases; those without such a mask come back as they are.
        stated: What counts; None takes every name that occurs, counted from 1.
        where: What to call the dataset in messages.

    Returns:
        The cases, and the labels; ``stated`` where no case has such a mask.

    Raises:
        DatasetError: Nothing is stated, and some masks are of formats that hold no names.
    """
    sets = {case.id: names for case in cases if (names := _structures_in(case)) is not None}
    if not sets:
        return cases, stated
    others = [case.id for case in cases if case.masks and not _may_name_structures(case)]
    if stated is None and others:
        raise DatasetError(
            where, expected="a look-up file of the labels, since only some masks name them",
            got=f"no names in case {others[0]}", cure="Put labels.csv beside it: value,name.",
        )  # fmt: skip
    labels = _united(sets.values()) if stated is None else stated
    return tuple(
        replace(case, structures=labels) if _may_name_structures(case) else case for case in cases
    ), labels


def _may_name_structures(case: Case) -> bool:
    """Whether the name of the mask is that of no other format."""
    return case.label is not None and not case.label.name.lower().endswith(SCAN_SUFFIXES)


def _structures_in(case: Case) -> LabelSet | None:
    """The structures that a DICOM mask names; None for other formats and broken files."""
    if case.label is None or not _may_name_structures(case):
        return None
    try:
        return read_label_names(case.label) if is_dicom_source(case.label) else None
    except MedsegError:
        return None


def _united(sets: Iterable[LabelSet]) -> LabelSet:
    """Every name once, whatever its capitals, in the order in which they come."""
    first: dict[str, Label] = {}
    for labels in sets:
        for label in labels.labels:
            first.setdefault(label.name.casefold(), label)
    return LabelSet(
        labels=tuple(
            label.model_copy(update={"value": value, "sources": (value,)})
            for value, label in enumerate(first.values(), start=1)
        )
    )


def _values(case: Case) -> set[int]:
    try:
        mask, _ = read_case_mask(case)
    except MedsegError:
        return set()
    return {int(value) for value in np.unique(mask)}


def _names_in(case: Case) -> LabelSet | None:
    try:
        return None if case.label is None else read_label_names(case.label)
    except MedsegError:
        return None


def _label_set(names: dict[int, str], *, where: str) -> LabelSet:
    try:
        return LabelSet.from_names(names)
    except LabelError as error:
        raise DatasetError(where, expected=error.expected, got=error.got) from error
