"""Which files are wanted beside a mask, and what they are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.errors import InputError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.io.contours import CONTOUR_SUFFIXES
from medseg.io.mesh import MESH_SUFFIXES

CONTOUR_FORMATS = tuple(CONTOUR_SUFFIXES)
MESH_FORMATS = tuple(suffix.removeprefix(".") for suffix in MESH_SUFFIXES)
# UTF-8 takes up to four bytes a letter, and file systems give a name 255.
_LONGEST_WORD = 50


@dataclass(frozen=True)
class Outputs:
    """What is wanted beside a mask ``DIR/<case>.nii.gz``.

    Attributes:
        per_label: ``DIR/<case>_labels/<label>.nii.gz``, a mask of 0 and 1 for each label.
        contours: Format of ``DIR/<case>_contours.json``: ``"json"``, of pictures also
            ``"geojson"``, ``"svg"``, ``"coco"``; "" for none.
        meshes: Format of ``DIR/<case>_meshes/<label>.stl``: ``"stl"``, ``"ply"``, ``"obj"``,
            ``"vtp"``, or ``"glb"`` for one scene ``DIR/<case>_meshes.glb``; "" for none.
        measure: ``DIR/<case>_measurements.csv``.
        preview: ``DIR/<case>_preview.png``.

    Raises:
        SettingsError: There is no such format.
    """

    per_label: bool = False
    contours: str = ""
    meshes: str = ""
    measure: bool = False
    preview: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--contours", self.contours, CONTOUR_FORMATS), ("--meshes", self.meshes, MESH_FORMATS),
        ):  # fmt: skip
            if value and value not in known:
                raise SettingsError(name, expected=", ".join(known), got=repr(value))

    @property
    def any(self) -> bool:
        """Whether anything is wanted."""
        return self != Outputs()

    @property
    def need_scan(self) -> bool:
        """Whether the intensities of the scan are needed."""
        return self.measure or self.preview

    def check(self, geometry: Geometry, source: str) -> None:
        """Refuse a volume where outlines are wanted in a format of pictures.

        Raises:
            InputError: It is one.
        """
        if self.contours not in ("", "json") and geometry.shape[2] != 1:
            raise InputError(
                f"outlines of {source} as {self.contours}", expected="a picture (one slice)",
                got=f"a volume {geometry.shape}", cure="Take json for volumes.",
            )  # fmt: skip

    def of_result(self) -> dict[str, Any]:
        """What is wanted, as plain JSON; empty where nothing is."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in given.items() if value}

    def paths(self, mask_path: Path, labels: LabelSet) -> list[Path]:
        """All files that may be written beside a mask."""
        words = file_words(labels).values()
        found: list[Path] = []
        if self.per_label:
            found += [beside(mask_path, "_labels") / f"{word}.nii.gz" for word in words]
        if self.contours:
            found.append(beside(mask_path, f"_contours{CONTOUR_SUFFIXES[self.contours]}"))
        if self.meshes == "glb":
            found.append(beside(mask_path, "_meshes.glb"))
        elif self.meshes:
            found += [beside(mask_path, "_meshes") / f"{word}.{self.meshes}" for word in words]
        if self.measure:
            found.append(beside(mask_path, "_measurements.csv"))
        if self.preview:
            found.append(beside(mask_path, "_preview.png"))
        return found


def beside(mask_path: Path, ending: str) -> Path:
    """``DIR/case.nii.gz`` and ``"_preview.png"`` to ``DIR/case_preview.png``."""
    return mask_path.with_name(f"{stem_of(mask_path)}{ending}")


def stem_of(mask_path: Path) -> str:
    """``DIR/case.nii.gz`` to ``case``."""
    return mask_path.name.removesuffix(".gz").removesuffix(".nii")


def file_words(labels: LabelSet) -> dict[int, str]:
    """A word for each label value that a file can be named by; no two are alike."""
    words: dict[int, str] = {}
    taken: set[str] = set()
    for label in labels.labels:
        word = re.sub(r"[^\w.-]+", "_", label.name).strip(".")[:_LONGEST_WORD] or "label"
        while word.casefold() in taken:
            word = f"{word}_{label.value}"
        taken.add(word.casefold())
        words[label.value] = word
    return words
