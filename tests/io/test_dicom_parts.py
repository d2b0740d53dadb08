"""Where DICOM may lie, and what is refused before it is believed."""

from __future__ import annotations

import gzip
import logging
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from medseg.core.errors import FileError
from medseg.io.dicom_parts import is_dicom, list_parts
from medseg.io.formats import read_scan
from tests.dicom_phantoms import Series, random_voxels


def zipped(folder: Path, archive: Path, *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as target:
        for path in sorted(folder.iterdir()):
            target.write(path, f"study/{path.name}")
    return archive


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_is_read_as_its_folder(method: int, tmp_path: Path) -> None:
    series = Series(random_voxels())
    folder = series.write(tmp_path / "s")
    scan = read_scan(zipped(folder, tmp_path / "s.zip", method=method))
    np.testing.assert_array_equal(scan.voxels()[0], series.voxels)
    assert scan.geometry == read_scan(folder).geometry
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.zip"]


def test_nested_folders_with_other_files(tmp_path: Path) -> None:
    series = Series(random_voxels())
    folder = series.write(tmp_path / "s")
    for number, path in enumerate(sorted(folder.iterdir())):
        target = folder / f"part {number % 2}" / path.with_suffix("").name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    (folder / "readme.txt").write_text("no scan")
    (folder / "empty").touch()
    np.testing.assert_array_equal(read_scan(folder).voxels()[0], series.voxels)


def test_gzipped_slices(tmp_path: Path) -> None:
    series = Series(random_voxels())
    folder = series.write(tmp_path / "s")
    for path in list(folder.iterdir()):
        path.with_suffix(".dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    np.testing.assert_array_equal(read_scan(folder).voxels()[0], series.voxels)


def write_dicomdir(folder: Path, names: list[list[str]]) -> Path:
    """The least that a DICOMDIR holds (PS3.3 F.3): a record for each file, and one for nobody."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.5"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    patient = Dataset()
    patient.DirectoryRecordType, patient.PatientName = "PATIENT", "Doe^Secret"
    records = [patient]
    for name in names:
        record = Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", name
        records.append(record)
    ds.DirectoryRecordSequence = records
    ds.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


def test_dicomdir(tmp_path: Path) -> None:
    series = Series(random_voxels())
    files = sorted(series.write(tmp_path / "cd" / "S1").iterdir())
    for number, path in enumerate(files):
        path.rename(path.with_name(f"IM{number}"))
    write_dicomdir(tmp_path / "cd", [["S1", f"IM{number}"] for number in range(len(files))])
    scan = read_scan(tmp_path / "cd" / "DICOMDIR")
    np.testing.assert_array_equal(scan.voxels()[0], series.voxels)
    # The folder itself, in which the DICOMDIR is one file of many.
    np.testing.assert_array_equal(read_scan(tmp_path / "cd").voxels()[0], series.voxels)
    alone = tmp_path / "alone" / "DICOMDIR"
    alone.parent.mkdir()
    alone.write_bytes((tmp_path / "cd" / "DICOMDIR").read_bytes())
    with pytest.raises(FileError, match="none of 6"):
        read_scan(alone)


@pytest.mark.parametrize("name", [["XX", "SECRET"], ["LINK"]])
def test_dicomdir_that_leads_out(name: list[str], tmp_path: Path) -> None:
    (tmp_path / "cd").mkdir()
    (tmp_path / "SECRET").write_bytes(b"x")
    (tmp_path / "cd" / "LINK").symlink_to(tmp_path / "SECRET")
    directory = write_dicomdir(tmp_path / "cd", [name])
    directory.write_bytes(directory.read_bytes().replace(b"XX", b".."))
    with pytest.raises(FileError, match="leads out"):
        read_scan(directory)


@pytest.mark.parametrize("name", ["../evil.dcm", "/etc/evil.dcm", "a/../../evil", "c:\\evil.dcm"])
def test_zip_with_names_that_lead_out(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"data")
    with pytest.raises(FileError, match="leads out"):
        read_scan(tmp_path / "z.zip")


def test_zip_with_a_link(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("link.dcm")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(member, b"/etc/passwd")
    with pytest.raises(FileError, match="a link"):
        read_scan(tmp_path / "z.zip")


def test_zip_bomb_by_promise(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.dcm", bytes(20 << 20))
    with pytest.raises(FileError, match="zip bomb"):
        read_scan(tmp_path / "z.zip")


def test_zip_bomb_by_deceit(tmp_path: Path) -> None:
    # The headers promise 200 bytes; the data grow to a megabyte.
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", b"\0" * 128 + b"DICM" + bytes(1 << 20))
    raw = (tmp_path / "z.zip").read_bytes()
    size = struct.pack("<L", 132 + (1 << 20))
    assert raw.count(size) == 2
    (tmp_path / "z.zip").write_bytes(raw.replace(size, struct.pack("<L", 200)))
    (part,) = list_parts(tmp_path / "z.zip")
    with pytest.raises(EOFError, match="more than the 200 bytes"):
        part.read()
    with pytest.raises(FileError):
        read_scan(tmp_path / "z.zip")


def test_zip_with_members_that_overlap(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", np.random.default_rng(0).bytes(100_000))
        # Listed three times, stored once.
        archive.filelist *= 3
    with pytest.raises(FileError, match="zip bomb"):
        read_scan(tmp_path / "z.zip")


def test_zip_that_is_damaged_or_locked(tmp_path: Path) -> None:
    folder = Series(random_voxels()).write(tmp_path / "s")
    raw = zipped(folder, tmp_path / "z.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(FileError, match="whole zip"):
        read_scan(tmp_path / "cut.zip")
    locked = bytearray(raw)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := raw.find(mark, at + 1)) >= 0:
            locked[at + flags] |= 1
    (tmp_path / "locked.zip").write_bytes(bytes(locked))
    with pytest.raises(FileError, match="encryption"):
        read_scan(tmp_path / "locked.zip")


def test_zip_whose_pixels_were_damaged(tmp_path: Path) -> None:
    folder = Series(random_voxels()).write(tmp_path / "s")
    archive = zipped(folder, tmp_path / "z.zip", method=zipfile.ZIP_STORED)
    pixels = random_voxels()[:, :, 3].T.tobytes()
    raw = archive.read_bytes()
    assert raw.count(pixels) == 1
    archive.write_bytes(raw.replace(pixels, pixels[:-1] + b"\x55"))
    scan = read_scan(archive)
    with pytest.raises(FileError, match="checksum"):
        scan.voxels()


def test_links_out_of_the_folder_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series = Series(random_voxels())
    folder = series.write(tmp_path / "s")
    other = Series(random_voxels(seed=1), uid="1.2.826.0.1.3680043.8.498.1.9")
    outside = other.write(tmp_path / "other")
    for path in outside.iterdir():
        (folder / f"link_{path.name}").symlink_to(path)
    (folder / "folder").symlink_to(outside, target_is_directory=True)
    caplog.set_level(logging.WARNING)
    np.testing.assert_array_equal(read_scan(folder).voxels()[0], series.voxels)
    assert "6 links" in caplog.text


def test_a_folder_or_zip_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.txt").write_text("nothing here")
    zipped(tmp_path / "s", tmp_path / "z.zip")
    for source in (tmp_path / "s", tmp_path / "z.zip"):
        with pytest.raises(FileError, match="DICOM images in it, got none"):
            read_scan(source)
    with pytest.raises(FileError, match="no such file"):
        list_parts(tmp_path / "absent")


def test_what_looks_like_dicom() -> None:
    assert is_dicom(bytes(128) + b"DICM")
    assert is_dicom(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100")
    for other in (b"", b"\x89PNG\r\n", b"\x5c\x01\0\0" + bytes(136), b"NRRD0004", b"PK\x03\x04"):
        assert not is_dicom(other)
