"""DICOM series made for tests: lopsided, oblique, with an origin off zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
}
STUDY = "1.2.826.0.1.3680043.8.498.1"


def turned() -> NDArray[np.float64]:
    """A rotation about no axis of the patient: rows of the image, columns, normal."""
    a, b = np.radians(25.0), np.radians(-12.0)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


@dataclass
class Series:
    """What a test writes: stored values (I, J, K), and where they lie in LPS mm."""

    voxels: NDArray[Any]
    axes: NDArray[np.float64] = field(default_factory=turned)
    spacing_mm: tuple[float, float, float] = (0.7, 1.1, 2.5)
    origin_mm: tuple[float, float, float] = (-81.0, 33.5, 212.25)
    step_mm: NDArray[np.float64] | None = None
    places: list[float] | None = None
    syntax: str = "explicit"
    uid: str = "1.2.826.0.1.3680043.8.498.1.1"
    number: int | None = 4
    tags: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> NDArray[np.float64]:
        """From one slice to the next, LPS mm."""
        return self.axes[:, 2] * self.spacing_mm[2] if self.step_mm is None else self.step_mm

    def position(self, k: int) -> list[float]:
        place = k if self.places is None else self.places[k]
        return [float(value) for value in np.array(self.origin_mm) + place * self.step]

    def affine_ras(self) -> NDArray[np.float64]:
        """What the geometry must come to, written down here once more."""
        affine = np.eye(4)
        affine[:3, 0] = self.axes[:, 0] * self.spacing_mm[0]
        affine[:3, 1] = self.axes[:, 1] * self.spacing_mm[1]
        affine[:3, 2] = self.step
        affine[:3, 3] = self.origin_mm
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    def dataset(self, k: int) -> Dataset:
        """One slice as a data set."""
        ds = base_dataset(self, CTImageStorage)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{self.uid}.{k + 1}"
        # Against the order of positions, and a thickness that is no distance.
        ds.InstanceNumber = 1000 - k
        ds.SliceThickness = 9.0
        ds.ImagePositionPatient = [f"{value:.6f}" for value in self.position(k)]
        ds.ImageOrientationPatient = [f"{v:.9f}" for v in self.axes[:, :2].T.ravel()]
        ds.PixelSpacing = [self.spacing_mm[1], self.spacing_mm[0]]
        set_pixels(ds, self.voxels[:, :, k].T, self.syntax)
        for name, value in self.tags.items():
            # A tuple holds a value for each slice.
            setattr(ds, name, value[k] if isinstance(value, tuple) else value)
        return ds

    def write(self, folder: Path) -> Path:
        """One file a slice; names in no order of position."""
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(self.voxels.shape[2]):
            save(self.dataset(k), folder / f"{(k * 7) % 11:02d}_{k}.dcm", self.syntax)
        return folder

    def write_enhanced(self, path: Path) -> Path:
        """All slices as frames of one object, in an order that is not that of positions."""
        order = np.random.default_rng(1).permutation(self.voxels.shape[2])
        ds = base_dataset(self, EnhancedCTImageStorage)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{self.uid}.1"
        ds.NumberOfFrames = len(order)
        measures, plane = Dataset(), Dataset()
        measures.PixelSpacing = [self.spacing_mm[1], self.spacing_mm[0]]
        measures.SliceThickness = 9.0
        plane.ImageOrientationPatient = [f"{v:.9f}" for v in self.axes[:, :2].T.ravel()]
        shared = Dataset()
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
        ds.SharedFunctionalGroupsSequence = [shared]
        ds.PerFrameFunctionalGroupsSequence = [self._group(int(k)) for k in order]
        frames = np.stack([self.voxels[:, :, k].T for k in order])
        set_pixels(ds, frames, self.syntax)
        path.parent.mkdir(parents=True, exist_ok=True)
        return save(ds, path, self.syntax)

    def _group(self, k: int) -> Dataset:
        place, values, group = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{value:.6f}" for value in self.position(k)]
        values.RescaleSlope, values.RescaleIntercept = 1 + k, -10 * k
        group.PlanePositionSequence = [place]
        group.PixelValueTransformationSequence = [values]
        return group


def base_dataset(series: Series, sop_class: str) -> Dataset:
    """What all files of a series share, and names of a patient that must never be told."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Doe^Secret", "ID-77123", "19600102"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = STUDY, series.uid
    ds.Modality, ds.SeriesDescription = "CT", "Abdomen axial"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    if series.number is not None:
        ds.SeriesNumber = series.number
    return ds


def set_pixels(ds: Dataset, pixels: NDArray[Any], syntax: str) -> None:
    """Store pixels (rows, columns) or (frames, rows, columns) as 16 bits."""
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == "big endian" else "<"
    ds.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder(order)).tobytes()
    ds["PixelData"].VR = "OW"


def save(ds: Dataset, path: Path, syntax: str = "explicit") -> Path:
    """Write a data set in a transfer syntax."""
    uid = SYNTAXES[syntax]
    if syntax == "RLE":
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless)
    else:
        ds.file_meta.TransferSyntaxUID = uid
    ds.save_as(path, enforce_file_format=True)
    return path


def random_voxels(shape: tuple[int, int, int] = (13, 9, 6), *, seed: int = 0) -> NDArray[np.int16]:
    """Values as a CT stores them, (I, J, K) int16."""
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)
