"""Write a dataset in another layout: files are copied or linked, and rewritten only where the
layout asks for it. The new folder appears whole or not at all, and the source is never touched.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import InputError
from medseg.core.results import Prediction
from medseg.core.scan import Scan
from medseg.datasets.dataset import Case, Dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.io.atomic import whole_file, whole_folder, write_text
from medseg.io.formats import SCAN_SUFFIXES, write_mask

if TYPE_CHECKING:
    import nibabel as nib

LAYOUTS = ("msd", "nnunet", "table")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Content:
    """What a case gets instead of its files: a scan, a mask (I, J, K), or both."""

    image: Scan | None = None
    mask: NDArray[Any] | None = None


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: Where.
        copied: Files taken over byte for byte (or linked).
        rewritten: Files written anew, with their voxels unchanged but for what ``renumbered`` says.
        renumbered: Old to new label values, where the layout wants them without gaps.
    """

    folder: Path
    copied: int
    rewritten: int
    renumbered: dict[int, int] = field(default_factory=dict)


def write_dataset(
    dataset: Dataset,
    out: Path,
    *,
    layout: str,
    link: bool = False,
    contents: Mapping[str, Content] | None = None,
    notes: Mapping[str, str] | None = None,
    progress: Progress = lambda done, total, note: None,
) -> Written:
    """Write a dataset as ``"msd"``, ``"nnunet"`` or ``"table"``.

    Args:
        dataset: What to write; masks of single organs are painted into one file.
        out: A folder that is not there yet, or empty, outside the dataset's own.
        layout: See above. nnU-Net wants one file per channel, one ending for all files and
            labels 1, 2, 3 without gaps; values are renumbered for it.
        link: Link to files instead of copying them.
        contents: What some cases get instead of their files, by case id.
        notes: Texts to lie beside the description, by file name.
        progress: Called with (done, total, case id).

    Raises:
        InputError: The layout is unknown, ``out`` is not empty or is the dataset's own folder,
            or the layout cannot say what the masks of the dataset mean.
        MedsegError: A case cannot be read.
        OutputError: ``out`` cannot be written.
    """
    _check_request(dataset, out, layout=layout)
    with whole_folder(out) as folder:
        writer = _Writer(dataset, folder, layout=layout, link=link)
        entries = []
        for number, case in enumerate(dataset.cases, start=1):
            entries.append(writer.case(case, (contents or {}).get(case.id, Content())))
            progress(number, len(dataset.cases), case.id)
        writer.describe(entries)
        for name, text in (notes or {}).items():
            write_text(folder / name, text)
    return Written(out, writer.copied, writer.rewritten, writer.renumbered)


def _check_request(dataset: Dataset, out: Path, *, layout: str) -> None:
    if layout not in LAYOUTS:
        raise InputError("--to", expected=", ".join(LAYOUTS), got=layout)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"--out {out}", expected="a new or empty folder", got="one that holds something",
            cure="Choose another folder; nothing is ever written over.",
        )  # fmt: skip
    home = dataset.folder.resolve()
    described = (home / "dataset.json").is_file()
    if out.resolve() == home or (described and home in out.resolve().parents):
        raise InputError(
            f"--out {out}", expected="a folder outside the dataset", got="one inside it"
        )
    if dataset.regions and layout == "table":
        raise InputError(
            f"dataset '{dataset.name}'", expected="a name for each mask value",
            got="regions, which overlap", cure="Use --to msd or nnunet, which can tell of them.",
        )  # fmt: skip
    without = [case.id for case in dataset.cases if case.missing]
    if without and layout != "table":
        raise InputError(
            f"dataset '{dataset.name}', case {without[0]}", expected="an image of each channel",
            got="a channel that is not there", cure="Use --to table, which can tell of it.",
        )  # fmt: skip


class _Writer:
    """Writes cases one by one and remembers what it did."""

    def __init__(self, dataset: Dataset, folder: Path, *, layout: str, link: bool) -> None:
        self.dataset, self.folder, self.layout, self.link = dataset, folder, layout, link
        self.copied, self.rewritten = 0, 0
        # nnU-Net wants the value to be ignored behind all others.
        values = dataset.labels.values + (() if dataset.ignore is None else (dataset.ignore,))
        gapless = layout != "nnunet" or values == tuple(range(1, len(values) + 1))
        self.renumbered = {} if gapless else {v: n for n, v in enumerate(values, start=1)}
        # A file per channel: always in nnU-Net's layout, and where some case lacks a channel.
        self.apart = layout == "nnunet" or any(case.missing for case in dataset.cases)
        endings = {suffix_of(path) for case in dataset.cases for path in case.files}
        # nnU-Net knows one ending for all; a JPEG mask would lose its values.
        same = len(endings) == 1 and endings <= {*SCAN_SUFFIXES}
        self.ending = endings.pop() if same else ".nii.gz"
        self.images, self.labels = ("images", "labels") if layout == "table" else (
            "imagesTr", "labelsTr")  # fmt: skip

    def case(self, case: Case, content: Content) -> dict[str, Any]:
        """Write the files of one case; returns its row of the description."""
        images = self._images(case, content)
        label = self._label(case, content)
        row: dict[str, Any] = {"case": case.id, "images": images, "label": label}
        if case.annotated is not None:
            # By value: a region may have the name of a label.
            row["annotated"] = [str(self._now(value)) for value in case.annotated]
        return row | ({"group": case.group} if case.group else {})

    def _images(self, case: Case, content: Content) -> list[str]:
        """Files of a case's channels; in a table "" for those that it has not."""
        channels = len(self.dataset.channels)
        there = [n for n in range(channels) if n not in case.missing]
        joined = self.layout == "msd"
        as_they_are = content.image is None and (
            len(case.images) == len(there) if self.apart else not joined or len(case.images) == 1
        )
        as_they_are &= all(suffix_of(path) in SCAN_SUFFIXES for path in case.images)
        if self.layout == "nnunet":
            as_they_are &= all(suffix_of(path) == self.ending for path in case.images)
        numbers = there if self.apart else list(range(len(case.images) if as_they_are else 1))
        if as_they_are:
            names = self._names(case.id, numbers, [suffix_of(path) for path in case.images])
            for source, name in zip(case.images, names, strict=True):
                self._take(source, name)
        else:
            scan = content.image or read_case_image(case)
            voxels = scan.voxels()
            parts = list(voxels[there][:, None]) if self.apart else [voxels]
            names = self._names(case.id, numbers, [".nii.gz"] * len(parts))
            for name, part in zip(names, parts, strict=True):
                self._write_scan(name, part, scan)
        if not case.missing:
            return names
        named = dict(zip(there, names, strict=True))
        return [named.get(number, "") for number in range(channels)]

    def _names(self, case_id: str, numbers: list[int], suffixes: list[str]) -> list[str]:
        many = self.apart and len(self.dataset.channels) > 1
        numbered = self.layout == "nnunet" or many or len(numbers) > 1
        return [
            f"{self.images}/{case_id}_{n:04d}{suffix}" if numbered
            else f"{self.images}/{case_id}{suffix}"
            for n, suffix in zip(numbers, suffixes, strict=True)
        ]  # fmt: skip

    def _label(self, case: Case, content: Content) -> str:
        whole = content.mask is None and case.label is not None and not self.renumbered
        if whole and case.label is not None:
            suffix = suffix_of(case.label)
            if suffix in SCAN_SUFFIXES and (self.layout != "nnunet" or suffix == self.ending):
                name = f"{self.labels}/{case.id}{suffix}"
                self._take(case.label, name)
                return name
        name = f"{self.labels}/{case.id}{'.nii.gz' if self.layout != 'nnunet' else self.ending}"
        if content.mask is not None:
            scan = content.image or read_case_image(case)
            mask = content.mask
        else:
            mask, scan = read_case_mask(case)
        self._write_mask(name, mask, scan)
        return name

    def _take(self, source: Path, name: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.link:
            target.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, target)
        self.copied += 1

    def _write_scan(self, name: str, voxels: NDArray[Any], scan: Scan) -> None:
        target = self.folder / name
        with whole_file(target) as temporary:
            scan_to_nibabel(voxels, scan).to_filename(temporary)
        self.rewritten += 1

    def _write_mask(self, name: str, mask: NDArray[Any], scan: Scan) -> None:
        if self.renumbered:
            top = max(self.renumbered)
            table = np.zeros(top + 1, dtype=np.uint16)
            table[list(self.renumbered)] = list(self.renumbered.values())
            mask = table[np.where(mask > top, 0, mask)]
        kind = np.uint8 if int(mask.max(initial=0)) <= 255 else np.uint16
        prediction = Prediction(
            mask.astype(kind), scan.geometry, self._names_now(), forms=scan.forms
        )
        write_mask(self.folder / name, prediction)
        self.rewritten += 1

    def _now(self, value: int) -> int:
        return self.renumbered.get(value, value)

    def _names_now(self) -> Any:
        labels = self.dataset.labels
        if not self.renumbered:
            return labels
        names = zip(labels.values, labels.names, strict=True)
        return type(labels).from_names({self.renumbered[value]: name for value, name in names})

    def describe(self, rows: list[dict[str, Any]]) -> None:
        """Write what says how the files belong together, and the folds."""
        {"msd": self._msd, "nnunet": self._nnunet, "table": self._table}[self.layout](rows)
        if self.dataset.splits is not None:
            folds = [{"train": s.train, "val": s.validation} for s in self.dataset.splits]
            name = "splits_final.json" if self.layout == "nnunet" else "splits.json"
            write_text(self.folder / name, json.dumps(folds, indent=1))

    def _common(self) -> dict[str, Any]:
        return {"name": self.dataset.name, "licence": self.dataset.licence}

    def _meaning(self) -> dict[str, Any]:
        """Labels as nnU-Net has them: regions with the order of painting, and ``ignore``."""
        labels, regions = self._names_now(), self.dataset.regions
        named: dict[str, Any] = dict(zip(labels.names, labels.values, strict=True))
        if regions:
            named = {one.name: [self._now(value) for value in one.values] for one in regions}
        if self.dataset.ignore is not None:
            named["ignore"] = self._now(self.dataset.ignore)
        order = [self._now(one.value) for one in regions if one.value is not None]
        told = {"regions_class_order": order} if regions and len(order) == len(regions) else {}
        return {"labels": {"background": 0} | named} | told

    def _msd(self, rows: list[dict[str, Any]]) -> None:
        labels = self.dataset.labels
        meaning = {
            "labels": {"0": "background"}
            | {str(v): name for v, name in zip(labels.values, labels.names, strict=True)}
        }
        if self.dataset.regions or self.dataset.ignore is not None:
            meaning = self._meaning()
        about = self._common() | meaning | {
            "modality": {str(n): name for n, name in enumerate(self.dataset.channels)},
            "numTraining": len(rows),
            "training": [
                {"image": row["images"][0], "label": row["label"]}
                | {key: row[key] for key in ("group", "annotated") if key in row}
                for row in rows
            ],
            "test": [],
        }  # fmt: skip
        write_text(self.folder / "dataset.json", json.dumps(about, indent=1))

    def _nnunet(self, rows: list[dict[str, Any]]) -> None:
        about = self._common() | self._meaning() | {
            "channel_names": {str(n): name for n, name in enumerate(self.dataset.channels)},
            "numTraining": len(rows),
            "file_ending": self.ending,
        }  # fmt: skip
        told = {row["case"]: row["annotated"] for row in rows if "annotated" in row}
        about |= {"annotated": told} if told else {}
        write_text(self.folder / "dataset.json", json.dumps(about, indent=1))

    def _table(self, rows: list[dict[str, Any]]) -> None:
        one_file = all(len(row["images"]) == 1 for row in rows)
        names = [""] if one_file and len(self.dataset.channels) > 1 else self.dataset.channels
        heads = [f"image_{name}" if name else "image" for name in names]
        partly = any("annotated" in row for row in rows)
        table = [["case", *heads, "label", "group", *(["annotated"] if partly else [])]]
        for row in rows:
            told = [";".join(row.get("annotated", []))] if partly else []
            table.append([row["case"], *row["images"], row["label"], row.get("group", ""), *told])
        labels, ignore = self.dataset.labels, self.dataset.ignore
        write_text(self.folder / "dataset.csv", _csv(table))
        pairs = [[str(v), name] for v, name in zip(labels.values, labels.names, strict=True)]
        pairs += [] if ignore is None else [[str(ignore), "ignore"]]
        write_text(self.folder / "labels.csv", _csv([["value", "name"], *pairs]))


def scan_to_nibabel(voxels: NDArray[Any], scan: Scan) -> nib.Nifti1Image:
    """Voxels (C, I, J, K) on a scan's grid as NIfTI: (I, J, K), or (I, J, K, C) with channels."""
    import nibabel as nib

    array = np.moveaxis(voxels, 0, -1)
    array = array[..., 0] if array.shape[-1] == 1 else array
    if array.dtype in (np.int64, np.uint64):
        array = array.astype(np.int32 if np.abs(array).max(initial=0) < 2**31 else np.float64)
    if array.dtype in (np.float16, np.bool_):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.uint8)
    image = nib.Nifti1Image(np.ascontiguousarray(array), scan.geometry.affine_ras)
    image.header.set_xyzt_units("mm")
    image.set_qform(scan.geometry.affine_ras, code=1)
    image.set_sform(scan.geometry.affine_ras, code=1)
    return image


def suffix_of(path: Path) -> str:
    """The suffix of the file's format, ``.nii.gz`` as one, in small letters."""
    name = path.name.lower()
    return next((suffix for suffix in SCAN_SUFFIXES if name.endswith(suffix)), path.suffix)


def _csv(rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
