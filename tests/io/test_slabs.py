"""Parts of a scan, read alone, against the same parts of the whole."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from isal import igzip

from medseg.core.errors import FileError, InputError, MedsegError
from medseg.core.geometry import Geometry
from medseg.core.scan import Scan
from medseg.io.formats import read_scan
from medseg.workflows.info import info
from tests.dicom_phantoms import Series, random_voxels
from tests.phantoms import lopsided_volume, oblique_affine, write_nifti

SHAPE = (11, 8, 6)


def _nifti(path: Path, *, channels: int = 1, slope: float = 1.0, order: str = "<") -> Path:
    voxels = np.stack([lopsided_volume(SHAPE)[0] + n for n in range(channels)], axis=-1)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(voxels if channels > 1 else voxels[..., 0], oblique_affine(), header)
    image.header.set_slope_inter(slope, 0 if slope == 1.0 else -7)
    nib.save(image, path)
    return path


def _itk(path: Path, dtype: str = "i2", *, packed: bool = False, channels: int = 1) -> Path:
    voxels = (lopsided_volume(SHAPE)[0] % 120).astype(dtype)
    array = voxels.T if channels == 1 else np.stack([voxels.T + n for n in range(channels)], -1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=channels > 1)
    image.SetSpacing((1.5, 2.0, 3.5))
    image.SetOrigin((-31.0, 17.5, 42.25))
    sitk.WriteImage(image, str(path), packed)
    return path


def _big_nrrd(path: Path) -> Path:
    voxels = lopsided_volume(SHAPE)[0]
    head = (
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: {' '.join(map(str, SHAPE))}\n"
        "encoding: raw\nendian: big\nspace: left-posterior-superior\n"
        "space directions: (1.5,0,0) (0,2,0) (0,0,3.5)\nspace origin: (1,2,3)\n\n"
    )
    path.write_bytes(head.encode() + voxels.astype(">i2").tobytes(order="F"))
    return path


def _mgh(path: Path) -> Path:
    voxels = np.stack([lopsided_volume(SHAPE, dtype=np.int32)[0] + n for n in range(2)], axis=-1)
    nib.save(nib.MGHImage(voxels, oblique_affine()), path)
    return path


def _dicom(path: Path, *, enhanced: bool = False, syntax: str = "explicit") -> Path:
    # The slope of one slice makes real numbers of all.
    slopes = tuple(1.0 if k else 0.5 for k in range(6))
    tags = {} if enhanced else {"RescaleSlope": slopes, "RescaleIntercept": -1024}
    series = Series(random_voxels(), syntax=syntax, tags=tags)
    return series.write_enhanced(path) if enhanced else series.write(path)


# What is made of it, and whether it can be read in parts.
SOURCES: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "nii": (lambda d: _nifti(d / "a.nii"), True),
    "nii big endian": (lambda d: _nifti(d / "a.nii", order=">"), True),
    "nii scaled": (lambda d: _nifti(d / "a.nii", slope=0.25), True),
    "nii channels": (lambda d: _nifti(d / "a.nii", channels=3), True),
    "nii.gz": (lambda d: _nifti(d / "a.nii.gz"), True),
    "nii.gz channels": (lambda d: _nifti(d / "a.nii.gz", channels=2), True),
    "img": (lambda d: _nifti(d / "a.img"), True),
    "mgh": (lambda d: _mgh(d / "a.mgh"), True),
    "mgz": (lambda d: _mgh(d / "a.mgz"), True),
    "gipl": (lambda d: _itk(d / "a.gipl"), True),
    "nrrd": (lambda d: _itk(d / "a.nrrd"), True),
    "nrrd of bytes": (lambda d: _itk(d / "a.nrrd", "u1"), True),
    "nrrd big endian": (lambda d: _big_nrrd(d / "a.nrrd"), True),
    "nrrd packed": (lambda d: _itk(d / "a.nrrd", packed=True), False),
    "nrrd vectors": (lambda d: _itk(d / "a.nrrd", channels=2), False),
    "nhdr": (lambda d: _itk(d / "a.nhdr", "f4"), True),
    "mha": (lambda d: _itk(d / "a.mha", "u2"), True),
    "mha packed": (lambda d: _itk(d / "a.mha", packed=True), False),
    "mha vectors": (lambda d: _itk(d / "a.mha", channels=2), False),
    "mhd": (lambda d: _itk(d / "a.mhd", "f8"), True),
    "dicom": (lambda d: _dicom(d / "a"), True),
    "dicom RLE": (lambda d: _dicom(d / "a", syntax="RLE"), True),
    "dicom enhanced": (lambda d: _dicom(d / "a.dcm", enhanced=True), True),
    "tiff": (lambda d: _itk(d / "a.tif", "u2"), False),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_slab_is_that_part_of_the_whole(tmp_path: Path, name: str) -> None:
    make, in_parts = SOURCES[name]
    scan = read_scan(make(tmp_path))
    whole = scan.voxels()
    assert (scan.load_slabs is not None) == in_parts
    for start, stop in ((0, 1), (2, 5), (5, 6), (0, 6)):
        slab = scan.read_slab(start, stop)
        assert slab.dtype == whole.dtype
        np.testing.assert_array_equal(slab, whole[..., start:stop])
    parts = list(scan.slabs(4))
    assert [part.shape[-1] for part in parts] == [4, 2]
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole)
    np.testing.assert_array_equal(next(iter(scan.slabs())), whole)


def test_slabs_that_are_not_there(tmp_path: Path) -> None:
    scan = read_scan(_nifti(tmp_path / "a.nii"))
    for start, stop in ((-1, 2), (2, 2), (3, 1), (0, 7)):
        with pytest.raises(InputError, match=r"0 <= start < stop <= 6"):
            scan.read_slab(start, stop)


def test_uneven_slices_are_read_as_a_whole(tmp_path: Path) -> None:
    places = [0.0, 1.0, 2.0, 4.0, 5.0, 6.0]
    folder = Series(random_voxels(), places=places).write(tmp_path / "a")
    scan = read_scan(folder, accept_gaps=True)
    assert scan.load_slabs is None
    np.testing.assert_array_equal(scan.read_slab(2, 6), scan.voxels()[..., 2:6])


def test_channels_from_several_files(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume(SHAPE)
    write_nifti(tmp_path / "a.nii.gz", voxels, affine)
    write_nifti(tmp_path / "b.nii", -voxels, affine)
    files = {name: read_scan(tmp_path / name) for name in ("a.nii.gz", "b.nii")}
    joined = Scan.from_channels(files)
    assert joined.load_slabs is not None
    np.testing.assert_array_equal(joined.read_slab(1, 4), joined.voxels()[..., 1:4])
    mixed = Scan.from_channels(
        {"a": files["b.nii"], "b": Scan.from_array(voxels, Geometry(SHAPE, affine))}
    )
    assert mixed.load_slabs is None
    np.testing.assert_array_equal(mixed.read_slab(1, 4), mixed.voxels()[..., 1:4])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".nrrd"])
def test_a_file_that_is_cut_later_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    make = {".nrrd": _itk, ".mgz": _mgh}.get(suffix, _nifti)
    scan = read_scan(make(path))
    packed = path.read_bytes()
    raw = gzip.decompress(packed) if suffix.endswith("z") else packed
    cut = raw[: len(raw) - 200]
    path.write_bytes(gzip.compress(cut) if suffix.endswith("z") else cut)
    with pytest.raises(FileError, match="expected a whole"):
        scan.read_slab(5, 6)


def test_a_wrong_checksum_is_found_when_the_end_is_read(tmp_path: Path) -> None:
    path = _nifti(tmp_path / "a.nii.gz")
    scan = read_scan(path)
    packed = bytearray(path.read_bytes())
    packed[-6] ^= 255  # in the checksum
    path.write_bytes(packed)
    with pytest.raises(FileError, match="expected a whole"):
        list(scan.slabs(2))


@pytest.mark.parametrize("folder", ["nifti_awkward", "dicom_awkward"])
def test_slabs_of_awkward_files(folder: str, shared_data: Callable[[str], Path]) -> None:
    compared = 0
    for path in sorted(shared_data(folder).rglob("*")):
        try:
            scan = read_scan(path)
            whole = scan.voxels()
        except MedsegError:
            continue
        if scan.load_slabs is None or whole.size > 1 << 22:
            continue
        parts = np.concatenate(list(scan.slabs(max(1, scan.geometry.shape[2] // 3))), axis=-1)
        assert parts.dtype == whole.dtype, path
        np.testing.assert_array_equal(parts, whole, err_msg=str(path))
        compared += 1
        if compared == 25:
            break
    assert compared >= 10


_PEAK = """
import resource, sys
from pathlib import Path
from medseg.io.formats import read_scan
from medseg.workflows.info import info
read = {"info": info, "slab": lambda p: read_scan(p).read_slab(100, 104)}[sys.argv[2]]
read(Path(sys.argv[3]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _write_zeros(path: Path, shape: tuple[int, int, int]) -> None:
    """A volume of float32 zeros that takes no room on the disk, or little when packed."""
    zeros = int(np.prod(shape)) * 4
    plain = path.with_name("plain")
    nib.save(nib.Nifti1Image(np.zeros((1, 1, 1), np.float32), oblique_affine()), f"{plain}.nii")
    header = bytearray(Path(f"{plain}.nii").read_bytes()[:352])
    header[40:56] = np.array([3, *shape, 1, 1, 1, 1], "<i2").tobytes()
    if path.suffix == ".nrrd":
        sides = " ".join(map(str, shape))
        header = bytearray(
            f"NRRD0004\ntype: float\ndimension: 3\nsizes: {sides}\nencoding: raw\n"
            "endian: little\n\n".encode()
        )
    with igzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as stream:
        stream.write(header)
        if path.suffix == ".gz":
            for _ in range(shape[2]):
                stream.write(bytes(zeros // shape[2]))
        else:
            stream.truncate(len(header) + zeros)


@pytest.mark.parametrize(
    ("suffix", "what", "most"),
    [
        (".nii", "slab", 0.08), (".nii.gz", "slab", 0.08), (".nrrd", "slab", 0.08),
        (".nii", "info", 0.4), (".nii.gz", "info", 0.4),
    ],
)  # fmt: skip
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_stays_far_below_the_whole(
    tmp_path: Path, suffix: str, what: str, most: float
) -> None:
    shape = (512, 512, 240)
    path, small = tmp_path / f"a{suffix}", tmp_path / f"small{suffix}"
    _write_zeros(path, shape)
    _write_zeros(small, (4, 4, 106))
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, path, what, small], capture_output=True, text=True, check=True
    )
    whole_kb = int(np.prod(shape)) * 4 // 1024  # ru_maxrss is in kB on Linux
    assert int(result.stdout) < most * whole_kb


@pytest.mark.parametrize("depth", [1, 4, None])
def test_info_tells_the_same_by_slabs(
    tmp_path: Path, depth: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = lopsided_volume(SHAPE, dtype=np.float32)[0]
    voxels[3, 2, 1], voxels[4, 4, 5], voxels[:, :, 2] = np.nan, np.inf, np.nan
    path = write_nifti(tmp_path / "a.nii.gz", voxels, oblique_affine())
    slabs = Scan.slabs
    monkeypatch.setattr(Scan, "slabs", lambda scan: slabs(scan, depth))
    facts = info(path)
    good = voxels[np.isfinite(voxels)]
    assert facts["range"] == [float(good.min()), float(good.max())]
    assert facts["non_finite_voxels"] == voxels.size - good.size == 2 + 11 * 8
    assert facts["dtype"] == "float32"
