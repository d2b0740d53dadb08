"""Read a pair of folders: ``images/`` and ``labels/``, files of the same name.

Several channels of a scan are ``case_0000``, ``case_0001`` ...; a folder ``labels/case/`` holds
one mask per organ. Names of labels come from ``labels.csv`` (or ``.json``, ``.tsv``, or
``label_names``) beside the two folders, names of channels from ``dataset.json``; where these
are missing, the files themselves are looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.core.errors import DatasetError
from medseg.core.labels import LabelSet
from medseg.datasets.channels import guess_channels
from medseg.datasets.dataset import Case, Dataset, listing
from medseg.datasets.description import (
    channels_of,
    check_ids,
    distinct,
    modality_of,
    read_json,
    splits_in,
)
from medseg.datasets.files import by_case, scans_in
from medseg.datasets.lookup import find_labels, labels_in_masks
from medseg.datasets.organs import number_organs, organ_files
from medseg.io.formats import case_name

_PAIRS = (
    ("images", "labels"), ("images", "masks"), ("imagesTr", "labelsTr"), ("image", "label"),
    ("scans", "masks"), ("images", "segmentations"),
)  # fmt: skip


def find_pair(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and of labels in a folder; None where there is no such pair."""
    for images, labels in _PAIRS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    return None


def read_folders(folder: Path, *, lenient: bool = False) -> Dataset:
    """Pair the files of two folders by their names without suffix.

    Args:
        folder: Holds ``images`` and ``labels``.
        lenient: Take images without a label too, for a check that tells of them.

    Raises:
        DatasetError: An image has no label, or a label no image.
    """
    pair = find_pair(folder)
    if pair is None:
        raise DatasetError(str(folder), expected="folders 'images' and 'labels'", got="others")
    images, masks = scans_in(pair[0]), scans_in(pair[1])
    by_organ = {sub.name: files for sub in sorted(pair[1].iterdir()) if (files := scans_in(sub))}
    labels = find_labels(folder)
    if by_organ and not masks:
        names = [case_name(p) for files in by_organ.values() for p in files]
        labels, values = number_organs(names, stated=labels, where=str(folder))
    else:
        values = {}
    cases = _cases(images, masks, by_organ, values=values)
    used = {file for case in cases for file in case.files}
    strays = tuple(path for path in (*images, *masks) if path not in used)
    alone = [case.images[0].name for case in cases if not case.masks]
    if not lenient and (alone or strays):
        raise DatasetError(
            f"{folder}",
            expected="an image and a label of the same name",
            got=f"alone: {listing([*alone, *(path.name for path in strays)])}",
            cure="Rename or remove them; `medseg check` lists all.",
        )
    checked = check_ids(cases, where=str(folder))
    raw = _description(folder)
    channels, modalities = _channels(raw, folder=folder, cases=checked)
    return Dataset(
        name=str(raw.get("name") or folder.resolve().name),
        folder=folder,
        channels=channels,
        modalities=modalities,
        labels=_kept(labels, checked, where=str(folder)),
        cases=checked,
        splits=splits_in(folder),
        licence=str(raw.get("licence") or raw.get("license") or ""),
        layout="folders",
        strays=strays,
    )


def _cases(
    images: list[Path],
    masks: list[Path],
    by_organ: dict[str, list[Path]],
    *,
    values: dict[str, int],
) -> list[Case]:
    labels = {case_name(path): path for path in masks}
    # An image that has a label of its very name is no channel of another.
    whole = {name: (path,) for path in images if (name := case_name(path)) in labels}
    others = by_case(path for path in images if case_name(path) not in labels)
    parts = {name: tuple(files[n] for n in sorted(files)) for name, files in others.items()}
    return [
        Case(
            name,
            paths,
            labels.get(name),
            organs=organ_files(by_organ.get(name, []), values),
        )
        for name, paths in sorted({**parts, **whole}.items())
    ]


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    raw = read_json(path) if path.is_file() else {}
    if not isinstance(raw, dict):
        raise DatasetError(str(path), expected="a JSON object", got=type(raw).__name__)
    return raw


def _channels(
    raw: dict[str, Any], *, folder: Path, cases: tuple[Case, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if raw.get("modality") or raw.get("channel_names"):
        names = channels_of(raw, path=folder / "dataset.json")
        return distinct(names), tuple(modality_of(name) for name in names)
    return guess_channels(cases)


def _kept(labels: LabelSet | None, cases: tuple[Case, ...], *, where: str) -> LabelSet:
    return labels if labels is not None else labels_in_masks(cases, where=where)
