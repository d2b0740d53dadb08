"""Read a DICOM folder of many slices: medseg against SimpleITK's series reader.

    python benchmarks/dicom_read.py [--slices 600] [--rounds 9]

Writes its own series (512 x 512, int16, a header as scanners write it), checks that both
readers give the same voxels, and prints the ratio of the best of several rounds (fresh memory
is slow to come by on a virtual machine, and would be most of what a single round measures).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medseg.io.formats import read_scan

_SIDE = 512


def write_series(folder: Path, slices: int) -> None:
    """A CT-like series: smooth shapes and noise, unsigned 12 bits with an intercept."""
    chance = np.random.default_rng(0)
    noise = chance.normal(0, 12, (_SIDE, _SIDE))
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE - 0.5
    study, series = generate_uid(), generate_uid()
    for k in range(slices):
        body = 1000 * (x**2 / 0.16 + y**2 / (0.09 + 0.02 * np.sin(k / 40)) < 1)
        pixels = np.clip(body + np.roll(noise, 7 * k) + 24, 0, 4095).astype(np.uint16)
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Modality, ds.SeriesDescription, ds.Manufacturer = "CT", "Abdomen 1.0", "Phantom"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = study, series, 3
        ds.InstanceNumber, ds.AcquisitionNumber, ds.SliceThickness = slices - k, 1, 1.5
        ds.KVP, ds.ConvolutionKernel, ds.PatientPosition = 120, "B30f", "HFS"
        ds.ImagePositionPatient = [-180.0, -175.5, -400.0 + 1.25 * k]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept = [0.71, 0.71], 1, -1024
        ds.Rows = ds.Columns = _SIDE
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        # As many elements again as a scanner adds.
        block = ds.private_block(0x0029, "PHANTOM", create=True)
        for element in range(40):
            block.add_new(element, "LO", f"value {element}")
        ds.PixelData = pixels.tobytes()
        ds["PixelData"].VR = "OW"
        ds.save_as(folder / f"{(k * 7919) % slices:05d}.dcm", enforce_file_format=True)


def by_medseg(folder: Path) -> NDArray[np.int16]:
    """Voxels (I, J, K)."""
    voxels: NDArray[np.int16] = read_scan(folder).voxels()[0]
    return voxels


def by_simpleitk(folder: Path) -> sitk.Image:
    """An image, the way SimpleITK's documentation reads a series; no copy to numpy."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def seconds(read: Callable[[Path], object], folder: Path) -> float:
    """Wall time of one reading."""
    started = time.perf_counter()
    read(folder)
    return time.perf_counter() - started


def main() -> None:
    """Measure and tell."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--slices", type=int, default=600)
    options.add_argument("--rounds", type=int, default=9)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(folder, given.slices)
        theirs_voxels = sitk.GetArrayFromImage(by_simpleitk(folder)).transpose(2, 1, 0)
        if not np.array_equal(by_medseg(folder), theirs_voxels):
            raise SystemExit("voxels differ")
        del theirs_voxels
        # In turns, so that a busy machine slows both.
        times = [
            (seconds(by_medseg, folder), seconds(by_simpleitk, folder)) for _ in range(given.rounds)
        ]
    ours, theirs = (min(column) for column in zip(*times, strict=True))
    print(
        f"DICOM, {given.slices} slices: medseg {ours:.2f} s, SimpleITK {theirs:.2f} s, "
        f"ratio {theirs / ours:.2f}, equal voxels"
    )


if __name__ == "__main__":
    main()
