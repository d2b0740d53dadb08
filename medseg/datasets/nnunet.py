"""Read a dataset in the raw layout of nnU-Net v2.

Source: Isensee et al., "nnU-Net", Nature Methods 2021; ``documentation/dataset_format.md`` and
``region_based_training.md`` of nnU-Net 2: ``imagesTr/case_0000.nii.gz``, a file per channel,
``labelsTr/case.nii.gz``, and ``dataset.json`` with ``channel_names``, ``labels`` and
``file_ending``. One key of ours, which nnU-Net passes over: ``annotated``, from case to the labels
that were looked for in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseg.core.errors import DatasetError
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
from medseg.datasets.scheme import meaning_of, with_annotations
from medseg.io.formats import case_name


def looks_like_nnunet(folder: Path, raw: dict[str, Any]) -> bool:
    """Whether a folder with this ``dataset.json`` is of nnU-Net's layout, not MSD's."""
    if not isinstance(raw.get("training"), list):
        return "file_ending" in raw or "channel_names" in raw or "dataset" in raw
    # nnU-Net 1 listed cases as the Decathlon does, without the channel's number.
    first = raw["training"][0] if raw["training"] else {}
    named = first.get("image") if isinstance(first, dict) else None
    if not isinstance(named, str) or (folder / named).exists():
        return False
    name = case_name(named)
    return any(case_name(p) == f"{name}_0000" for p in scans_in(folder / "imagesTr"))


def read_nnunet(folder: Path, *, lenient: bool = False) -> Dataset:
    """Read ``dataset.json`` and pair the files of ``imagesTr`` and ``labelsTr``.

    Args:
        folder: Holds ``dataset.json``, ``imagesTr`` and ``labelsTr``.
        lenient: Take cases whose files are missing too, for a check that tells of them.

    Raises:
        DatasetError: A file is missing or malformed; the message names it.
    """
    path = folder / "dataset.json"
    raw = read_json(path)
    channels = channels_of(raw, path=path)
    ending = str(raw.get("file_ending") or "")
    listed = raw.get("dataset")
    images = [p for p in scans_in(folder / "imagesTr") if p.name.endswith(ending)]
    masks = [p for p in scans_in(folder / "labelsTr") if p.name.endswith(ending)]
    if isinstance(listed, dict):
        cases = [_listed_case(name, entry, path=path) for name, entry in sorted(listed.items())]
    else:
        cases = _found_cases(images, masks, channels=len(channels))
    # One file may hold all channels (a colour picture, a 4D volume), then of every case.
    files = len(channels) if any(len(case.images) > 1 for case in cases) else 1
    problems = [text for case in cases if (text := _problem(case, files=files))]
    if problems and not lenient:
        raise DatasetError(
            f"{folder}, {problems[0]}",
            expected=f"{len(channels)} image files (case_0000 ...) and a label file per case",
            got="fewer or other files",
            cure="Restore the files, or take the case out.",
        )
    used = {file for case in cases for file in case.files}
    labels, regions, ignore = meaning_of(raw, path=path)
    told = _annotations(raw, [case.id for case in cases], path=path)
    cases = list(with_annotations(cases, told, labels, regions, where=str(path)))
    return Dataset(
        name=str(raw.get("name") or folder.resolve().name),
        folder=folder,
        channels=distinct(channels),
        modalities=tuple(modality_of(name) for name in channels),
        labels=labels,
        cases=check_ids(cases, where=str(folder)),
        splits=splits_in(folder),
        licence=str(raw.get("licence") or raw.get("license") or ""),
        layout="nnU-Net",
        regions=regions,
        ignore=ignore,
        strays=tuple(p for p in (*images, *masks) if p not in used) if lenient else (),
    )


def _found_cases(images: list[Path], masks: list[Path], *, channels: int) -> list[Case]:
    by_name = {path.name: path for path in masks}
    cases = []
    for case_id, files in sorted(by_case(images).items()):
        paths = tuple(files[number] for number in sorted(files))
        # A colour picture holds its three channels in one file.
        if len(paths) > channels:
            paths = paths[:channels]
        ending = paths[0].name[len(case_id) :].removeprefix("_0000")
        label = by_name.get(f"{case_id}{ending}")
        if label is None:
            label = next((p for n, p in by_name.items() if n.startswith(f"{case_id}.")), None)
        cases.append(Case(case_id, paths, label))
    return cases


def _listed_case(name: str, entry: Any, *, path: Path) -> Case:
    images = entry.get("images") if isinstance(entry, dict) else None
    label = entry.get("label") if isinstance(entry, dict) else None
    texts = [*images, label] if isinstance(images, list) and images else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DatasetError(
            f"{path}, key 'dataset'",
            expected='{"case": {"images": ["..."], "label": "..."}}',
            got=json.dumps({name: entry})[:80],
        )
    *image_files, label_file = (path.parent / str(text) for text in texts)
    return Case(name, tuple(image_files), label_file)


def _annotations(raw: dict[str, Any], cases: list[str], *, path: Path) -> list[Any]:
    given = raw.get("annotated") or {}
    strange = sorted(set(given) - set(cases)) if isinstance(given, dict) else ["no object"]
    if strange:
        raise DatasetError(
            f"{path}, key 'annotated'", expected='{"case": ["label", ...]}',
            got=listing(strange), cure="Name cases of the dataset.",
        )  # fmt: skip
    return [given.get(case) for case in cases]


def _problem(case: Case, *, files: int) -> str:
    missing = [file.name for file in case.files if not file.is_file()]
    if missing:
        return f"case {case.id}, {listing(missing)}"
    wrong = len(case.images) != files or case.label is None
    return f"case {case.id}" if wrong else ""
