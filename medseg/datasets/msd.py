"""Read a dataset in the layout of the Medical Segmentation Decathlon.

Source: Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 2022;
the layout is described at http://medicaldecathlon.com. The keys of nnU-Net's
``dataset.json`` (``channel_names``, ``labels`` from name to value) are understood too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from medseg.core.errors import DatasetError, LabelError
from medseg.core.labels import LabelSet
from medseg.datasets.dataset import Case, Dataset, Split, listing
from medseg.io.formats import case_name

_EXAMPLE = '"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]'
_CT = {"ct", "cta", "cect", "ncct", "hu"}
_MR = {
    "mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "adc", "dwi",
    "pd", "swi", "bold", "cine",
}  # fmt: skip


def read_msd(folder: Path) -> Dataset:
    """Read ``dataset.json`` (and ``splits.json``) and check that every listed file is there.

    Voxels are not read; :func:`medseg.datasets.inspect.verify_cases` does that.

    Args:
        folder: Holds ``dataset.json``, ``imagesTr`` and ``labelsTr``.

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
    raw = _read_json(path)
    if not isinstance(raw, dict):
        raise DatasetError(str(path), expected="a JSON object", got=type(raw).__name__)
    channels = _channels(raw, path=path)
    return Dataset(
        name=str(raw.get("name") or folder.resolve().name),
        folder=folder,
        channels=_distinct(channels),
        modalities=tuple(_modality(name) for name in channels),
        labels=_labels(raw, path=path),
        cases=_cases(raw, folder=folder, path=path),
        splits=_splits(folder / "splits.json"),
        licence=str(raw.get("licence") or raw.get("license") or ""),
    )


def _what_is_there(folder: Path) -> str:
    if folder.is_dir():
        return "no dataset.json in it"
    return "a file" if folder.exists() else "no such folder"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DatasetError(
            str(path), expected="JSON", got=str(error), cure="Repair the file at that place."
        ) from error
    except OSError as error:
        raise DatasetError(
            str(path), expected="a readable file", got=error.strerror or str(error)
        ) from error


def _channels(raw: dict[str, Any], *, path: Path) -> tuple[str, ...]:
    """Channel names by their number: ``{"0": "CT"}`` or ``["CT"]``."""
    given = raw.get("modality") or raw.get("channel_names") or {}
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list):
        given = {str(number): name for number, name in enumerate(given)}
    numbers = sorted(given, key=_number) if isinstance(given, dict) else []
    if not numbers or [_number(key) for key in numbers] != list(range(len(numbers))):
        raise DatasetError(
            f"{path}, key 'modality'",
            expected='channels from 0, for example {"0": "CT"}',
            got=json.dumps(given)[:80],
            cure="State what each channel is: CT, MR, ...",
        )
    return tuple(str(given[key]) for key in numbers)


def _number(key: object) -> int:
    text = str(key)
    return int(text) if text.isdecimal() else -1


def _distinct(channels: tuple[str, ...]) -> tuple[str, ...]:
    often = Counter(channels)
    return tuple(
        f"{name} {channels[:position].count(name) + 1}" if often[name] > 1 else name
        for position, name in enumerate(channels)
    )


def _modality(channel: str) -> str:
    word = channel.strip().casefold().replace("-", "").replace(" ", "")
    if word in _CT:
        return "CT"
    return "MR" if word in _MR else channel


def _labels(raw: dict[str, Any], *, path: Path) -> LabelSet:
    given = raw.get("labels")
    where = f"{path}, key 'labels'"
    if not isinstance(given, dict) or not given:
        raise DatasetError(
            where,
            expected='value and name, for example {"0": "background", "1": "liver"}',
            got=json.dumps(given)[:80],
            cure="Name every value that the masks hold.",
        )
    names: dict[int, str] = {}
    for key, entry in given.items():
        value, name = (key, entry) if str(key).isdecimal() else (entry, key)
        if isinstance(value, bool) or not str(value).isdecimal() or not isinstance(name, str):
            raise DatasetError(
                where,
                expected="one whole number and one name per label",
                got=json.dumps({key: entry})[:80],
                cure="Merge labels with --labels instead.",
            )
        if value is entry and name.casefold() == "ignore":
            raise DatasetError(
                where,
                expected="labels of structures",
                got="an 'ignore' label",
                cure="Regions to be ignored are not supported; give them a value of their own.",
            )
        if int(value) in names:
            raise DatasetError(where, expected="one name per value", got=f"two for {value}")
        names[int(value)] = name
    try:
        return LabelSet.from_names(names)
    except (LabelError, ValueError) as error:
        got = getattr(error, "got", "") or str(error).splitlines()[0]
        raise DatasetError(
            where,
            expected="values 1 to 65535 with a name of its own each",
            got=got,
            cure='For example {"0": "background", "1": "liver"}.',
        ) from error


def _cases(raw: dict[str, Any], *, folder: Path, path: Path) -> tuple[Case, ...]:
    entries = raw.get("training")
    if not isinstance(entries, list) or not entries:
        raise DatasetError(
            f"{path}, key 'training'",
            expected="a list of cases",
            got="none" if not entries else type(entries).__name__,
            cure=f"For example {_EXAMPLE}.",
        )
    cases = tuple(_case(entry, folder=folder, path=path) for entry in entries)
    twice = [case_id for case_id, count in Counter(c.id for c in cases).items() if count > 1]
    if twice:
        raise DatasetError(
            f"{path}, key 'training'",
            expected="a name of its own for each image",
            got=f"more than one case {listing(twice)}",
            cure="Rename the files or drop the doubles.",
        )
    return cases


def _case(entry: object, *, folder: Path, path: Path) -> Case:
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
    if not isinstance(entry.get("label"), str):
        raise DatasetError(
            f"{path}, case {entry['image']}",
            expected="a label file",
            got="none",
            cure='Add "label" to the case, or move the case to "test".',
        )
    image = _inside(entry["image"], folder=folder, path=path)
    label = _inside(entry["label"], folder=folder, path=path)
    return Case(case_name(image), image, label, group=str(entry.get("group") or ""))


def _inside(text: str, *, folder: Path, path: Path) -> Path:
    """The file of a relative path that stays in the folder.

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
    file = folder / relative
    if not file.is_file():
        raise DatasetError(
            f"{path}, file {text}",
            expected="the file that is listed",
            got="no such file",
            cure="Restore the file, or take the case out of dataset.json.",
        )
    return file


def _splits(path: Path) -> tuple[Split, ...] | None:
    """The folds in ``splits.json``: a list of objects with "train" and "val"."""
    if not path.is_file():
        return None
    raw = _read_json(path)
    if not isinstance(raw, list) or not raw:
        raise DatasetError(str(path), expected="a list of folds", got=json.dumps(raw)[:80])
    return tuple(_split(entry, number=number, path=path) for number, entry in enumerate(raw))


def _split(entry: object, *, number: int, path: Path) -> Split:
    sides = []
    for names in (("train",), ("val", "validation")):
        found = [entry[n] for n in names if n in entry] if isinstance(entry, dict) else []
        side = found[0] if found else None
        if not isinstance(side, list) or not all(isinstance(case_id, str) for case_id in side):
            raise DatasetError(
                f"{path}, fold {number}",
                expected='lists of case ids under "train" and "val"',
                got=json.dumps(entry)[:80],
            )
        sides.append(tuple(side))
    return Split(sides[0], sides[1])
