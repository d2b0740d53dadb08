"""Files of outlines, read back by other means."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image, ImageDraw

from medseg.core.errors import InputError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Contours
from medseg.io.contours import (
    write_contours_coco,
    write_contours_geojson,
    write_contours_json,
    write_contours_svg,
)
from medseg.io.image2d import PICTURE_AFFINE_RAS
from medseg.postprocess.contours import contours
from tests.phantoms import lopsided_geometry

LABELS = LabelSet.from_names({1: "ring", 2: "<dot> & co"})


def picture() -> np.ndarray:
    mask = np.zeros((31, 19, 1), dtype=np.uint8)
    mask[4:20, 3:15] = 1
    mask[8:13, 6:10] = 0
    mask[10, 8] = 2
    mask[29:, 17:] = 2
    return mask


@pytest.fixture
def drawn() -> Contours:
    mask = picture()
    return contours(mask, Geometry((31, 19, 1), PICTURE_AFFINE_RAS), LABELS)


def painted(rings: list[list[list[float]]]) -> np.ndarray:
    """A polygon with holes, painted by Pillow at eight times the size; (columns, rows)."""
    large = Image.new("1", (31 * 8, 19 * 8))
    for number, ring in enumerate(rings):
        ImageDraw.Draw(large).polygon([(8 * x, 8 * y) for x, y in ring], fill=int(number == 0))
    return np.asarray(large)[4::8, 4::8].T


def test_geojson(drawn: Contours, tmp_path: Path) -> None:
    write_contours_geojson(tmp_path / "a.geojson", drawn)
    content = json.loads((tmp_path / "a.geojson").read_text())
    for name, value in (("ring", 1), ("<dot> & co", 2)):
        found = np.zeros((31, 19), dtype=bool)
        for feature in content["features"]:
            if feature["properties"]["classification"]["name"] == name:
                rings = feature["geometry"]["coordinates"]
                assert rings[0][0] == rings[0][-1]
                found |= painted(rings)
        np.testing.assert_array_equal(found, picture()[..., 0] == value)


def test_svg(drawn: Contours, tmp_path: Path) -> None:
    write_contours_svg(tmp_path / "a.svg", drawn)
    root = ET.parse(tmp_path / "a.svg").getroot()
    assert root.get("viewBox") == "0 0 31 19"
    titles = [node.text for node in root.iter() if node.tag.endswith("title")]
    assert titles == ["ring", "<dot> & co"]
    paths = [node.get("d", "") for node in root.iter() if node.tag.endswith("path")]
    assert sorted(path.count("M") for path in paths) == [1, 1, 2]


def test_coco(drawn: Contours, tmp_path: Path) -> None:
    write_contours_coco(tmp_path / "coco.json", [("a.png", drawn), ("b.png", drawn)])
    content = json.loads((tmp_path / "coco.json").read_text())
    assert [image["width"] for image in content["images"]] == [31, 31]
    assert [row["name"] for row in content["categories"]] == ["ring", "<dot> & co"]
    (ring,) = (row for row in content["annotations"] if row["iscrowd"] and row["image_id"] == 1)
    height, width = ring["segmentation"]["size"]
    values = np.repeat(
        np.arange(len(ring["segmentation"]["counts"])) % 2, ring["segmentation"]["counts"]
    )
    found = values.reshape((height, width), order="F").T
    np.testing.assert_array_equal(found, picture()[..., 0] == 1)
    assert ring["bbox"] == [4, 3, 16, 12]
    dots = [row for row in content["annotations"] if not row["iscrowd"] and row["image_id"] == 1]
    assert len(dots) == 2
    corners = np.reshape(dots[1]["segmentation"][0], (-1, 2))
    assert painted([corners.tolist()]).sum() == 4


def test_json_is_in_mm(tmp_path: Path) -> None:
    geometry = lopsided_geometry((9, 8, 5))
    mask = np.zeros((9, 8, 5), dtype=np.uint8)
    mask[2:7, 1:6, 3] = 1
    write_contours_json(tmp_path / "a.json", contours(mask, geometry, LABELS))
    content = json.loads((tmp_path / "a.json").read_text())
    (piece,) = content["labels"][0]["slices"]
    assert piece["slice"] == 3
    corners = np.array(piece["regions"][0]["outline_mm"])
    inverse = np.linalg.inv(geometry.affine_ras)
    places = corners @ inverse[:3, :3].T + inverse[:3, 3]
    np.testing.assert_allclose(places[:, 2], 3.0, atol=1e-3)
    np.testing.assert_allclose(places.min(axis=0)[:2], [1.5, 0.5], atol=1e-3)
    np.testing.assert_allclose(places.max(axis=0)[:2], [6.5, 5.5], atol=1e-3)


def test_volumes_are_no_pictures(tmp_path: Path) -> None:
    mask = np.ones((4, 3, 2), dtype=np.uint8)
    found = contours(mask, lopsided_geometry((4, 3, 2)), LABELS)
    for write in (write_contours_svg, write_contours_geojson):
        with pytest.raises(InputError, match="--format json"):
            write(tmp_path / "a", found)
    with pytest.raises(InputError, match="a volume"):
        write_contours_coco(tmp_path / "a", [("a", found)])
    assert list(tmp_path.iterdir()) == []
