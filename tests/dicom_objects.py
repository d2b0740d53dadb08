"""Segmentations and structure sets made for tests, on the lopsided series of dicom_phantoms."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from tests.dicom_phantoms import Series, base_dataset, save

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


@dataclass
class SegFile:
    """What a test writes as a segmentation: masks (I, J, K) by segment number, and names."""

    series: Series
    masks: dict[int, NDArray[np.generic]]
    names: dict[int, str] = field(default_factory=dict)
    kind: str = "BINARY"
    fraction_of: int = 200
    refer: bool = True
    shuffle: bool = True
    sparse: bool = True
    between_mm: float | None = None

    def dataset(self) -> Dataset:
        """The object; frames in no order, none for slices without the segment if sparse."""
        ds = base_dataset(
            self.series, LABEL_MAP if self.kind == "LABELMAP" else SegmentationStorage
        )
        ds.SeriesInstanceUID, ds.Modality = f"{self.series.uid}.77", "SEG"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{self.series.uid}.77.1"
        ds.SegmentationType = self.kind
        ds.SegmentSequence = [self._segment(number) for number in self.masks]
        if self.refer:
            ds.ReferencedSeriesSequence = [Dataset()]
            ds.ReferencedSeriesSequence[0].SeriesInstanceUID = self.series.uid
        frames = [
            (number, k)
            for number, mask in self.masks.items()
            for k in range(mask.shape[2])
            if mask[:, :, k].any() or not self.sparse
        ]
        if self.shuffle:
            frames = [frames[n] for n in np.random.default_rng(3).permutation(len(frames))]
        self._groups(ds, frames)
        self._pixels(ds, np.stack([self.masks[n][:, :, k].T for n, k in frames]))
        return ds

    def write(self, path: Path, *, syntax: str = "explicit") -> Path:
        """Write it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return save(self.dataset(), path, syntax)

    def _segment(self, number: int) -> Dataset:
        item = Dataset()
        item.SegmentNumber = number
        item.SegmentLabel = self.names.get(number, f"organ {number}")
        # Red (255, 0, 0) under D50, as the ICC profile of sRGB has it: L 54.29, a 80.81, b 69.89.
        lab = (54.29 / 100, (80.81 + 128) / 255, (69.89 + 128) / 255)
        item.RecommendedDisplayCIELabValue = [round(share * 65535) for share in lab]
        return item

    def _groups(self, ds: Dataset, frames: list[tuple[int, int]]) -> None:
        series = self.series
        measures, turn, shared = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing = [series.spacing_mm[1], series.spacing_mm[0]]
        if self.between_mm is not None:
            measures.SpacingBetweenSlices = self.between_mm
        turn.ImageOrientationPatient = [f"{v:.9f}" for v in series.axes[:, :2].T.ravel()]
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
        ds.SharedFunctionalGroupsSequence = [shared]
        ds.PerFrameFunctionalGroupsSequence = []
        for number, k in frames:
            group, place, segment = Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = [f"{value:.6f}" for value in series.position(k)]
            segment.ReferencedSegmentNumber = number
            group.PlanePositionSequence = [place]
            if self.kind != "LABELMAP":
                group.SegmentIdentificationSequence = [segment]
            ds.PerFrameFunctionalGroupsSequence.append(group)

    def _pixels(self, ds: Dataset, frames: NDArray[np.generic]) -> None:
        ds.NumberOfFrames, ds.Rows, ds.Columns = frames.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.PixelRepresentation = 0
        bits = 1 if self.kind == "BINARY" else 8
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
        if self.kind == "BINARY":
            raw = np.packbits(frames.astype(bool).ravel(), bitorder="little").tobytes()
        else:
            raw = frames.astype(np.uint8).tobytes()
        if self.kind == "FRACTIONAL":
            ds.MaximumFractionalValue = self.fraction_of
        ds.PixelData = raw + b"\0" * (len(raw) % 2)
        ds["PixelData"].VR = "OB"


@dataclass
class Roi:
    """One structure: contours as (type, corners), corners (N, 3) as voxel indices."""

    name: str
    contours: list[tuple[str, list[tuple[float, float, float]]]]
    colour: tuple[int, int, int] = (10, 200, 30)


def closed(corners: list[tuple[float, float]], k: float) -> tuple[str, list[tuple[float, ...]]]:
    """A closed contour on slice k."""
    return "CLOSED_PLANAR", [(i, j, k) for i, j in corners]


def write_rtstruct(
    series: Series, rois: dict[int, Roi], path: Path, *, refer: str | None = "series"
) -> Path:
    """Write a structure set that refers to a series (``"series"``), to another UID, or to none."""
    ds = base_dataset(series, RTSTRUCT)
    ds.SeriesInstanceUID, ds.Modality = f"{series.uid}.88", "RTSTRUCT"
    ds.StudyInstanceUID = series.tags.get("StudyInstanceUID", ds.StudyInstanceUID)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{series.uid}.88.1"
    if refer is not None:
        inner, study, frame = Dataset(), Dataset(), Dataset()
        inner.SeriesInstanceUID = series.uid if refer == "series" else refer
        study.RTReferencedSeriesSequence = [inner]
        frame.RTReferencedStudySequence = [study]
        ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    columns = [series.axes[:, 0] * series.spacing_mm[0], series.axes[:, 1] * series.spacing_mm[1]]
    to_mm = np.column_stack([*columns, series.step])
    for number, roi in rois.items():
        about, drawn = Dataset(), Dataset()
        about.ROINumber, about.ROIName = number, roi.name
        drawn.ReferencedROINumber, drawn.ROIDisplayColor = number, list(roi.colour)
        drawn.ContourSequence = []
        for kind, corners in roi.contours:
            item = Dataset()
            places = np.array(corners) @ to_mm.T + series.origin_mm
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(corners)
            item.ContourData = [f"{value:.7g}" for value in places.ravel()]
            drawn.ContourSequence.append(item)
        ds.StructureSetROISequence.append(about)
        ds.ROIContourSequence.append(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(ds, path)
