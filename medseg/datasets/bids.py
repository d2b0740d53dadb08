"""Read segmentations in the layout of BIDS derivatives.

``sub-01/[ses-1/]anat/sub-01_[ses-1_]T1w.nii.gz`` with ``sub-01_[ses-1_]..._dseg.nii.gz`` in the
same place, or in the same place below ``derivatives/NAME/``; what the values mean stands in a
``dseg.tsv`` at the top of either tree.

Source: Brain Imaging Data Structure 1.9, "Imaging data derivatives".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medseg.core.errors import DatasetError
from medseg.core.labels import LabelSet
from medseg.datasets.dataset import Case, Dataset, listing
from medseg.datasets.description import check_ids, modality_of, read_json, splits_in
from medseg.datasets.files import scans_in
from medseg.datasets.lookup import labels_in_masks, read_labels
from medseg.io.formats import case_name

# Say how a derivative was made, not which scan it belongs to.
_OF_DERIVATIVES = {"desc", "atlas", "seg", "label", "res", "den"}
_MODALITIES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "inplaneT2", "ct", "pet", "angio", "bold")


@dataclass(frozen=True)
class _Named:
    """A file name taken apart: ``sub-01_ses-1_T1w`` -> entities and suffix."""

    path: Path
    entities: tuple[tuple[str, str], ...]
    suffix: str

    @classmethod
    def of(cls, path: Path) -> _Named:
        *parts, suffix = case_name(path).split("_")
        pairs = [part.partition("-") for part in parts]
        return cls(path, tuple((key, value) for key, _, value in pairs), suffix)

    @property
    def scan(self) -> frozenset[tuple[str, str]]:
        return frozenset(pair for pair in self.entities if pair[0] not in _OF_DERIVATIVES)


def looks_like_bids(folder: Path) -> bool:
    """Whether the folder, or one of its derivatives, holds discrete segmentations of subjects."""
    return any(_named(folder, "dseg"))


def read_bids(folder: Path, *, lenient: bool = False) -> Dataset:
    """Pair each ``dseg`` with the scans of the same subject, session, run and space.

    Args:
        folder: A derivative, or a dataset that holds derivatives.
        lenient: Take segmentations whose scan is missing as strays, for a check.

    Raises:
        DatasetError: A segmentation has no scan, a scan two segmentations, or the subjects
            have no modality in common.
    """
    segmentations = list(_named(folder, "dseg"))
    images = [one for top in _tops(folder) for one in _named(top, *_MODALITIES)]
    found: dict[str, tuple[_Named, dict[str, Path]]] = {}
    lost = []
    for mask in segmentations:
        case_id = "_".join(
            f"{key}-{value}" for key, value in mask.entities if (key, value) in mask.scan
        )
        scans = {one.suffix: one.path for one in images if one.scan == mask.scan}
        if not scans:  # a mask may state the space that raw scans leave out
            plain = frozenset(pair for pair in mask.scan if pair[0] != "space")
            scans = {one.suffix: one.path for one in images if one.scan == plain}
        if not scans:
            lost.append(mask.path)
        elif case_id in found:
            raise DatasetError(
                f"{folder}, {case_id}", expected="one dseg per scan",
                got=f"{found[case_id][0].path.name} and {mask.path.name}",
                cure="Give a folder that holds one of them.",
            )  # fmt: skip
        else:
            found[case_id] = mask, scans
    if not found or (lost and not lenient):
        raise DatasetError(
            str(folder), expected="a scan (T1w, T2w, FLAIR ...) beside each dseg",
            got=f"none for {listing([path.name for path in lost])}",
        )  # fmt: skip
    return _dataset(folder, found, lost)


def _dataset(
    folder: Path, found: dict[str, tuple[_Named, dict[str, Path]]], lost: list[Path]
) -> Dataset:
    shared = set.intersection(*(set(scans) for _, scans in found.values()))
    channels = tuple(name for name in _MODALITIES if name in shared)
    if not channels:
        raise DatasetError(
            str(folder), expected="a modality that every subject has",
            got=", ".join(sorted({name for _, scans in found.values() for name in scans})),
        )  # fmt: skip
    cases = tuple(
        Case(
            case_id,
            tuple(scans[name] for name in channels),
            mask.path,
            group=next((f"sub-{value}" for key, value in mask.entities if key == "sub"), ""),
        )
        for case_id, (mask, scans) in sorted(found.items())
    )
    check_ids(cases, where=str(folder))
    about = folder / "dataset_description.json"
    raw = read_json(about) if about.is_file() else {}
    facts = raw if isinstance(raw, dict) else {}
    return Dataset(
        name=str(facts.get("Name") or folder.resolve().name),
        folder=folder,
        channels=channels,
        modalities=tuple(modality_of(name) for name in channels),
        labels=_labels(folder, cases),
        cases=cases,
        splits=splits_in(folder),
        licence=str(facts.get("License") or ""),
        layout="BIDS",
        strays=tuple(lost),
    )


def _labels(folder: Path, cases: tuple[Case, ...]) -> LabelSet:
    """From the ``dseg.tsv`` nearest to the first mask, upwards, as BIDS inherits it."""
    first = cases[0].masks[0]
    stem = case_name(first)
    tops = _tops(folder)
    for place in first.parents:
        for path in sorted(place.glob("*dseg.tsv")):
            named = path.stem.removesuffix("dseg").rstrip("_")
            if all(part in stem.split("_") for part in named.split("_") if part):
                return read_labels(path)
        if place in tops:
            break
    return labels_in_masks(cases, where=str(folder))


def _named(folder: Path, *suffixes: str) -> Iterable[_Named]:
    for top in (folder, *sorted(folder.glob("derivatives/*"))):
        for anat in sorted([*top.glob("sub-*/anat"), *top.glob("sub-*/ses-*/anat")]):
            for path in scans_in(anat):
                one = _Named.of(path)
                if one.suffix in suffixes:
                    yield one


def _tops(folder: Path) -> list[Path]:
    """The folder, and the raw dataset that it is a derivative of."""
    full = folder.resolve()
    raw = [full.parent.parent] if full.parent.name == "derivatives" else []
    return [folder, *raw]
