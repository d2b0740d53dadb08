"""Read a folder per case with one mask per organ, as TotalSegmentator writes and publishes them.

::

    DATASET/
      s0001/ct.nii.gz                      the scan (or mr, t1, image ...; several are channels)
      s0001/segmentations/liver.nii.gz     one file per organ, whatever is not 0 belongs to it
      labels.csv                           optional: value and name of each organ

The masks may also lie beside the scan. Masks may overlap: they are painted in the order of
their values, so that a later one stays. ``labels.csv`` states the values; without it the
organs are numbered by the alphabet. Nothing is written: a mask is put together when it is read.

Source: Wasserthal et al., "TotalSegmentator", Radiology: Artificial Intelligence 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from medseg.core.errors import DatasetError
from medseg.core.labels import LabelSet
from medseg.datasets.channels import guess_channels
from medseg.datasets.dataset import Case, Dataset, OrganMask, listing
from medseg.datasets.description import check_ids, modality_of, splits_in
from medseg.datasets.files import by_case, scans_in
from medseg.datasets.lookup import find_labels
from medseg.io.formats import case_name

_SCAN_NAMES = ("ct", "mr", "mri", "pet", "t1", "t1c", "t2", "flair", "image", "img", "scan")
_MASK_FOLDERS = ("segmentations", "segmentation", "masks", "labels", "organs")


def looks_like_organs(folder: Path) -> bool:
    """Whether some folder in it holds a scan and masks of single organs."""
    return any(_scans_of(sub) and _masks_of(sub) for sub in _case_folders(folder))


def read_organs(folder: Path, *, lenient: bool = False) -> Dataset:
    """Read a folder of case folders, each with a scan and one mask per organ.

    Args:
        folder: Holds a folder per case.
        lenient: Take cases without a scan or masks too, for a check that tells of them.

    Raises:
        DatasetError: A case has no scan, no masks or other channels; an organ is not in
            ``labels.csv``.
    """
    found = {sub.name: (_scans_of(sub), _masks_of(sub)) for sub in _case_folders(folder)}
    cases_with_masks = {name: both for name, both in found.items() if both[0] and both[1]}
    alone = sorted(set(found) - set(cases_with_masks))
    if alone and not lenient:
        raise DatasetError(
            str(folder),
            expected="a scan (ct.nii.gz, image.nii.gz ...) and masks in each case's folder",
            got=f"not in {listing(alone)}",
            cure="Complete or remove these folders.",
        )
    names = [case_name(path) for _, masks in found.values() for path in masks]
    labels, values = number_organs(names, stated=find_labels(folder), where=str(folder))
    cases = tuple(
        Case(name, tuple(scans.values()), None, organs=organ_files(masks, values))
        for name, (scans, masks) in sorted(found.items())
        if scans
    )
    check_ids(cases, where=str(folder))
    channels, modalities = _channels([scans for scans, _ in found.values() if scans], cases)
    return Dataset(
        name=folder.resolve().name,
        folder=folder,
        channels=channels,
        modalities=modalities,
        labels=labels,
        cases=cases,
        splits=splits_in(folder),
        licence="",
        layout="organs",
        strays=tuple(path for scans, masks in found.values() if not scans for path in masks),
    )


def number_organs(
    names: Iterable[str], *, stated: LabelSet | None, where: str
) -> tuple[LabelSet, dict[str, int]]:
    """Values of the organs: as stated, else 1, 2, 3 in the order of the alphabet.

    Raises:
        DatasetError: There are no organs, or one that is not among those stated.
    """
    organs = sorted(set(names))
    if not organs:
        raise DatasetError(where, expected="masks of organs", got="none")
    if stated is None:
        labels = LabelSet.from_names(dict(enumerate(organs, start=1)))
        return labels, dict(zip(labels.names, labels.values, strict=True))
    known = dict(zip(stated.names, stated.values, strict=True))
    unknown = [name for name in organs if name not in known]
    if unknown:
        raise DatasetError(
            where,
            expected="masks of the organs that the look-up file names",
            got=f"also {listing(unknown)}",
            cure="Add them to the look-up file, or remove them.",
        )
    return stated, known


def organ_files(paths: Sequence[Path], values: dict[str, int]) -> tuple[OrganMask, ...]:
    """The masks in the order in which they are painted: by value."""
    organs = [OrganMask(values[case_name(path)], path) for path in paths]
    return tuple(sorted(organs, key=lambda organ: organ.value))


def _case_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _scans_of(folder: Path) -> dict[str, Path]:
    """The scan's files by channel: ``{"ct": path}`` or ``{"image 0": path, "image 1": path}``."""
    paths: dict[str, Path] = {}
    found = {name.casefold(): files for name, files in by_case(scans_in(folder)).items()}
    for name in _SCAN_NAMES:
        files = found.get(name, {})
        for number in sorted(files):
            paths[name if len(files) == 1 else f"{name} {number}"] = files[number]
    return paths


def _masks_of(folder: Path) -> list[Path]:
    for name in _MASK_FOLDERS:
        if (folder / name).is_dir():
            return scans_in(folder / name)
    scans = set(_scans_of(folder).values())
    return [path for path in scans_in(folder) if path not in scans]


def _channels(
    scans: Sequence[dict[str, Path]], cases: tuple[Case, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = tuple(scans[0])
    other = next((tuple(one) for one in scans if tuple(one) != names), None)
    if other is not None:
        raise DatasetError(
            str(cases[0].images[0].parent.parent),
            expected=f"the same channels in each case ({', '.join(names)})",
            got=f"also {', '.join(other)}",
        )
    guessed = guess_channels(cases)
    if len(names) != len(guessed[0]) or (len(names) == 1 and names[0] in ("image", "img", "scan")):
        return guessed
    return names, tuple(modality_of(name) for name in names)
