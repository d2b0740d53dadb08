"""Pictures: columns, rows, channels, and what is refused."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medseg.core.errors import FileError
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io.formats import read_mask, read_scan, write_mask
from tests.phantoms import lopsided_geometry


def _save(path: Path, pixels: Any, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_columns_and_rows(tmp_path: Path, suffix: str, dtype: Any) -> None:
    rows = np.arange(35, dtype=dtype).reshape(5, 7) * 7  # 5 rows of 7
    scan = read_scan(_save(tmp_path / f"a{suffix}", rows))
    assert scan.geometry.shape == (7, 5, 1)
    assert scan.geometry.spacing_mm == (1.0, 1.0, 1.0)
    assert scan.geometry.axis_codes == "LPS"
    voxels = scan.voxels()
    assert voxels.dtype == dtype
    assert voxels[0, 6, 2, 0] == rows[2, 6]
    assert np.array_equal(voxels[0, :, :, 0].T, rows)


def test_a_picture_lies_where_simpleitk_puts_it(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", np.zeros((5, 7), np.uint8))
    image, scan = sitk.ReadImage(str(path)), read_scan(path)
    x, y = image.TransformIndexToPhysicalPoint((6, 4))
    assert np.allclose(scan.geometry.affine_ras @ [6, 4, 0, 1], [-x, -y, 0, 1])


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg"])
def test_colours_become_three_channels(tmp_path: Path, suffix: str) -> None:
    rows = np.zeros((16, 24, 3), np.uint8)
    rows[:8, :, 0], rows[8:, :, 2] = 200, 100
    scan = read_scan(_save(tmp_path / f"a{suffix}", rows))
    assert scan.channels == ("red", "green", "blue")
    voxels = scan.voxels()
    assert voxels.shape == (3, 24, 16, 1)
    assert np.allclose(voxels[:, 3, 2, 0], (200, 0, 0), atol=6)  # JPEG loses a little
    assert np.allclose(voxels[:, 3, 14, 0], (0, 0, 100), atol=6)


def test_real_numbers_in_tiff(tmp_path: Path) -> None:
    rows = np.linspace(-1.0, 2.0, 35, dtype=np.float32).reshape(5, 7)
    assert np.array_equal(read_scan(_save(tmp_path / "a.tif", rows)).voxels()[0, :, :, 0].T, rows)


def test_a_palette_is_colours_in_a_scan_and_values_in_a_mask(tmp_path: Path) -> None:
    values = (np.arange(35, dtype=np.uint8) % 3).reshape(5, 7)
    picture = Image.fromarray(values).convert("P")
    picture.putdata(values.ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    assert read_scan(tmp_path / "a.png").voxels()[:, 1, 0, 0].tolist() == [255, 0, 0]
    mask, _ = read_mask(tmp_path / "a.png")
    assert np.array_equal(mask[:, :, 0].T, values)


def test_a_black_and_white_mask_has_values_0_and_1(tmp_path: Path) -> None:
    mask, _ = read_mask(_save(tmp_path / "a.png", np.eye(6, dtype=bool)))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask[:, :, 0], np.eye(6))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_refused_with_a_cure(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(FileError, match="alpha") as caught:
        read_scan(tmp_path / "a.png")
    assert "without" in caught.value.cure


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [None, "tiff_deflate", "tiff_lzw"])
def test_pages_of_a_tiff_are_a_volume(tmp_path: Path, big: bool, compression: str | None) -> None:
    rows = np.arange(4 * 5 * 7, dtype=np.uint16).reshape(4, 5, 7)  # 4 pages of 5 rows of 7
    first, *others = (Image.fromarray(page) for page in rows)
    path = tmp_path / "a.tif"
    first.save(path, save_all=True, append_images=others, compression=compression, big_tiff=big)
    scan = read_scan(path)
    assert scan.geometry.shape == (7, 5, 4)
    assert scan.voxels().dtype == np.uint16
    assert np.array_equal(scan.voxels()[0].T, rows)
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), rows)
    x, y, z = (*image.TransformIndexToPhysicalPoint((0, 0, 3)),)
    assert np.allclose(scan.geometry.affine_ras @ [0, 0, 3, 1], [-x, -y, z, 1])


def test_a_jpeg_of_empty_segments_is_refused_in_time(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8" + b"\xff\xe0\0\x02" * 2_000_000)
    started = time.perf_counter()
    with pytest.raises(FileError, match="no size"):
        read_scan(tmp_path / "a.jpg")
    assert time.perf_counter() - started < 5.0


def test_pages_of_colours_and_pages_of_a_mask(tmp_path: Path) -> None:
    rows = np.random.Generator(np.random.PCG64(0)).integers(0, 3, (4, 5, 7, 3), np.uint8)
    for name, pages in (("rgb", rows), ("mask", rows[..., 0])):
        first, *others = (Image.fromarray(page) for page in pages)
        first.save(tmp_path / f"{name}.tif", save_all=True, append_images=others)
    colours = read_scan(tmp_path / "rgb.tif").voxels()
    assert np.array_equal(colours.transpose(3, 2, 1, 0), rows)
    assert np.array_equal(read_mask(tmp_path / "mask.tif")[0].T, rows[..., 0])


def test_pages_that_differ_and_print_colours_are_refused(tmp_path: Path) -> None:
    page = Image.new("L", (6, 4))
    for name, other, word in (
        ("size", Image.new("L", (5, 4)), "5 x 4 and 6 x 4"),
        ("mode", Image.new("F", (6, 4)), "pages of type"),
    ):
        path = tmp_path / f"{name}.tif"
        page.save(path, save_all=True, append_images=[page, other])
        with pytest.raises(FileError, match=word):
            read_scan(path).voxels()
    page.save(tmp_path / "a.png", save_all=True, append_images=[Image.new("L", (6, 4), 9)])
    with pytest.raises(FileError, match="2 pages"):
        read_scan(tmp_path / "a.png")
    Image.new("CMYK", (6, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(FileError, match="CMYK"):
        read_scan(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_promise_of_too_many_pixels_is_refused(tmp_path: Path, suffix: str) -> None:
    path = _save(tmp_path / f"a{suffix}", np.zeros((300, 200), np.uint8))
    content = path.read_bytes()
    small, large = {
        ".png": (struct.pack(">II", 200, 300), struct.pack(">II", 60000, 60000)),
        ".jpg": (struct.pack(">HH", 300, 200), struct.pack(">HH", 60000, 60000)),
        ".tif": (struct.pack("<HHII", 256, 4, 1, 200), struct.pack("<HHII", 256, 4, 1, 1 << 31)),
    }[suffix]
    assert content.count(small) == 1
    path.write_bytes(content.replace(small, large))
    with pytest.raises(FileError, match=r"pixels|bytes for"):
        read_scan(path)


def test_tiff_directories_that_lead_astray(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.tif", np.zeros((30, 20), np.uint8))
    content = path.read_bytes()
    (place,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[place : place + 2])
    end = place + 2 + 12 * count
    round_and_round = content[:end] + struct.pack("<I", place) + content[end + 4 :]
    beyond = content[:4] + struct.pack("<I", 1 << 30) + content[8:]
    many = content[:place] + struct.pack("<H", 65535) + content[place + 2 :]
    for damaged in (round_and_round, beyond, many, content[: end - 6]):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=r"a\.tif"):
            read_scan(path)


def test_a_colour_picture_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="3 channels"):
        read_mask(_save(tmp_path / "a.png", np.zeros((5, 7, 3), np.uint8)))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9])
def test_a_truncated_picture_is_one_error(tmp_path: Path, suffix: str, keep: float) -> None:
    rows = np.random.Generator(np.random.PCG64(0)).integers(0, 255, (64, 48), np.uint8)
    path = _save(tmp_path / f"a{suffix}", rows)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(FileError, match=rf"a\{suffix}"):
        read_scan(path).voxels()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_pictures(tmp_path: Path, dtype: Any) -> None:
    scan = read_scan(_save(tmp_path / "a.png", np.zeros((5, 7), np.uint8)))
    top = 2 if dtype == np.uint8 else 1000
    mask = (np.arange(35).reshape(7, 5, 1) % 2 * top).astype(dtype)
    labels = LabelSet.from_names({top: "cell"})
    for name in ("mask.png", "mask.tif", "mask.nii.gz"):
        write_mask(tmp_path / name, Prediction(mask, scan.geometry, labels))
        values, where = read_mask(tmp_path / name)
        assert np.array_equal(values, mask)
        assert where.geometry == scan.geometry


def test_a_volume_does_not_fit_into_a_picture(tmp_path: Path) -> None:
    geometry = lopsided_geometry()
    mask = np.zeros(geometry.shape, np.uint8)
    with pytest.raises(FileError, match="2D"):
        write_mask(tmp_path / "a.png", Prediction(mask, geometry, LabelSet.from_names({1: "a"})))


def test_real_pictures(shared_data: Callable[[str], Path]) -> None:
    path = min((shared_data("retina_chase_2d") / "images").iterdir())
    with Image.open(path) as picture:
        expected = np.asarray(picture)
    assert np.array_equal(read_scan(path).voxels()[..., 0].transpose(2, 1, 0), expected)
