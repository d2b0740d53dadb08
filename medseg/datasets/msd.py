"""Read a dataset in the layout of the Medical Segmentation Decathlon.

Source: Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 2022;
the layout is described at http://medicaldecathlon.com. The keys of nnU-Net's
``dataset.json`` (``channel_names``, ``labels`` from name to value, regions and ``ignore``) are
understood too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from medseg.core.errors import DatasetError
from medseg.datasets.dataset import Case, Dataset
from medseg.datasets.description import (
    channels_of,
    check_ids,
    distinct,
    modality_of,
    read_json,
    splits_in,
)
from medseg.datasets.files import scans_in
from medseg.datasets.scheme import meaning_of, with_annotations
from medseg.io.formats import case_name

_EXAMPLE = '"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]'


def read_msd(folder: Path, *, lenient: bool = False) -> Dataset:
    """Read ``dataset.json`` (and ``splits.json``) and check that every listed file is there.

    Voxels are not read; :func:`medseg.datasets.inspect.verify_cases` does that.

    Args:
        folder: Holds ``dataset.json``, ``imagesTr`` and ``labelsTr``.
        lenient: Take cases whose files are missing too, for a check that tells of them.

    Raises:
        DatasetError: A file is missing or malformed; the message names it.
    """
    folder = Path(folder)
    path = folder / "dataset.json"
    if not path.is_file():
        raise DatasetError(
            str(folder),
            expected="a folder with dataset.json, imagesTr and labelsTr",
            got=_what_is_there(folder),
            cure="Give the folder that holds dataset.json.",
        )
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise DatasetError(str(path), expected="a JSON object", got=type(raw).__name__)
    channels = channels_of(raw, path=path)
    labels, regions, ignore = meaning_of(raw, path=path)
    cases = _cases(raw, path=path, lenient=lenient)
    told = [
        entry.get("annotated") if isinstance(entry, dict) else None for entry in raw["training"]
    ]
    cases = with_annotations(cases, told, labels, regions, where=str(path))
    return Dataset(
        name=str(raw.get("name") or folder.resolve().name),
        folder=folder,
        channels=distinct(channels),
        modalities=tuple(modality_of(name) for name in channels),
        labels=labels,
        cases=cases,
        splits=splits_in(folder),
        licence=str(raw.get("licence") or raw.get("license") or ""),
        regions=regions,
        ignore=ignore,
        strays=_strays(folder, cases) if lenient else (),
    )


def _what_is_there(folder: Path) -> str:
    if folder.is_dir():
        return "no dataset.json in it"
    return "a file" if folder.exists() else "no such folder"


def _strays(folder: Path, cases: tuple[Case, ...]) -> tuple[Path, ...]:
    listed = {file for case in cases for file in case.files}
    found = [*scans_in(folder / "imagesTr"), *scans_in(folder / "labelsTr")]
    return tuple(file for file in found if file not in listed)


def _cases(raw: dict[str, Any], *, path: Path, lenient: bool) -> tuple[Case, ...]:
    entries = raw.get("training")
    where = f"{path}, key 'training'"
    if not isinstance(entries, list) or not entries:
        raise DatasetError(
            where,
            expected="a list of cases",
            got="none" if not entries else type(entries).__name__,
            cure=f"For example {_EXAMPLE}.",
        )
    return check_ids([_case(e, path=path, lenient=lenient) for e in entries], where=where)


def _case(entry: object, *, path: Path, lenient: bool) -> Case:
    if isinstance(entry, str):
        name = Path(entry).name
        entry = {"image": entry, "label": f"labelsTr/{name}"}
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise DatasetError(
            f"{path}, key 'training'",
            expected="an image and a label per case",
            got=json.dumps(entry)[:80],
            cure=f"For example {_EXAMPLE}.",
        )
    group = str(entry.get("group") or "")
    image = _inside(entry["image"], path=path, lenient=lenient)
    if not isinstance(entry.get("label"), str):
        if lenient:
            return Case(case_name(image), (image,), None, group=group)
        raise DatasetError(
            f"{path}, case {entry['image']}",
            expected="a label file",
            got="none",
            cure='Add "label" to the case, or move the case to "test".',
        )
    label = _inside(entry["label"], path=path, lenient=lenient)
    return Case(case_name(image), (image,), label, group=group)


def _inside(text: str, *, path: Path, lenient: bool) -> Path:
    """The file of a relative path that stays in the folder of ``path``.

    Judged by the text alone: a link that the user has put into the folder may lead away.
    """
    relative = Path(os.path.normpath(text.replace("\\", "/")))
    if relative.is_absolute() or relative.drive or ".." in relative.parts:
        raise DatasetError(
            f"{path}, file {text}",
            expected="a path inside the dataset's folder",
            got="one that leads out of it",
            cure="Move the file into the folder.",
        )
    file = path.parent / relative
    if not lenient and not file.is_file():
        raise DatasetError(
            f"{path}, file {text}",
            expected="the file that is listed",
            got="no such file",
            cure="Restore the file, or take the case out of dataset.json.",
        )
    return file
