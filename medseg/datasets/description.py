"""What the description files of several layouts share: JSON, channels, labels, folds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.core.errors import DatasetError, LabelError
from medseg.core.labels import LabelSet
from medseg.datasets.dataset import Case, Split, listing

_CT = {"ct", "cta", "cect", "ncct", "hu"}
_MR = {
    "mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "adc", "dwi",
    "pd", "pdw", "swi", "bold", "cine",
}  # fmt: skip
_PLAIN = re.compile(r"(?!\.)[^/\\\x00-\x1f]+")
SPLIT_FILES = ("splits.json", "splits_final.json")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: It cannot be read, or is no JSON.
    """
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


def channels_of(raw: dict[str, Any], *, path: Path) -> tuple[str, ...]:
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


def distinct(channels: tuple[str, ...]) -> tuple[str, ...]:
    """Channel names that tell apart: ``MR, MR`` becomes ``MR 1, MR 2``."""
    often = Counter(channels)
    return tuple(
        f"{name} {channels[:position].count(name) + 1}" if often[name] > 1 else name
        for position, name in enumerate(channels)
    )


def modality_of(channel: str) -> str:
    """``"CT"`` or ``"MR"`` for the names that people give them, else the name itself."""
    word = channel.strip().casefold().replace("-", "").replace(" ", "")
    if word in _CT:
        return "CT"
    return "MR" if word in _MR else channel


def labels_of(raw: dict[str, Any], *, path: Path) -> LabelSet:
    """Labels as ``{"1": "liver"}`` or ``{"liver": 1}`` under the key ``labels``.

    Raises:
        DatasetError: They are no pairs of a whole number and a name.
    """
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
                cure="Merge labels with --labels instead; regions that overlap are understood in "
                "dataset.json.",
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


def splits_in(folder: Path) -> tuple[Split, ...] | None:
    """The folds in ``splits.json`` (or nnU-Net's ``splits_final.json``); None without one.

    Raises:
        DatasetError: The file is no list of objects with "train" and "val".
    """
    path = next((folder / name for name in SPLIT_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    raw = read_json(path)
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


def check_ids(cases: Sequence[Case], *, where: str) -> tuple[Case, ...]:
    """The cases, when each has a name of its own that can name a file.

    Raises:
        DatasetError: Two cases share a name, or a name is empty or holds a slash.
    """
    if not cases:
        raise DatasetError(where, expected="at least one case", got="none")
    bad = [case.id for case in cases if not _PLAIN.fullmatch(case.id)]
    if bad:
        raise DatasetError(
            where,
            expected="case names without slashes, not empty, not beginning with a dot",
            got=listing([repr(name) for name in bad]),
            cure="Rename these cases.",
        )
    twice = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise DatasetError(
            where,
            expected="a name of its own for each image",
            got=f"more than one case {listing(twice)}",
            cure="Rename the files or drop the doubles.",
        )
    return tuple(cases)
