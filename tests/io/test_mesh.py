"""Mesh files are read back with trimesh; VTP, which it does not know, by hand."""

from __future__ import annotations

import struct
from base64 import b64decode
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from medseg.core.errors import FileError
from medseg.core.labels import LabelSet
from medseg.core.results import Mesh
from medseg.io.mesh import MESH_SUFFIXES, write_meshes
from medseg.postprocess.surfaces import meshes
from tests.phantoms import blobs, lopsided_geometry

SHAPE = (24, 20, 16)
LABELS = LabelSet.from_names({1: "liver\nleft", 2: 'a "b" <c>'})


@pytest.fixture(scope="module")
def scene() -> list[Mesh]:
    return meshes(blobs(SHAPE)[1], lopsided_geometry(SHAPE), LABELS)


@pytest.mark.parametrize("suffix", [".stl", ".ply", ".obj"])
def test_read_back(scene: list[Mesh], suffix: str, tmp_path: Path) -> None:
    trimesh: Any = pytest.importorskip("trimesh")
    path = tmp_path / f"scene{suffix}"
    write_meshes(path, scene)
    assert b"SPACE=RAS" in path.read_bytes()[:200]
    found = trimesh.load(path, force="mesh")
    assert found.is_watertight
    assert found.volume == pytest.approx(sum(mesh.volume_mm3 for mesh in scene), rel=1e-4)
    vertices = np.concatenate([mesh.vertices_mm for mesh in scene])
    np.testing.assert_allclose(
        found.bounds, [vertices.min(axis=0), vertices.max(axis=0)], atol=1e-3
    )
    if suffix != ".stl":
        colours = {tuple(row) for row in found.visual.vertex_colors[:, :3].tolist()}
        assert colours == {label.colour for label in LABELS.labels}


def test_glb_is_a_scene_with_y_upwards(scene: list[Mesh], tmp_path: Path) -> None:
    trimesh: Any = pytest.importorskip("trimesh")
    path = tmp_path / "scene.glb"
    write_meshes(path, scene)
    found = trimesh.load(path)
    assert len(found.geometry) == 2
    points = np.concatenate([mesh.vertices_mm for mesh in scene])
    turned = np.stack([-points[:, 0], points[:, 2], points[:, 1]], axis=1) / 1000
    np.testing.assert_allclose(found.bounds, [turned.min(axis=0), turned.max(axis=0)], atol=1e-6)
    whole = found.to_mesh() if hasattr(found, "to_mesh") else found.dump(concatenate=True)
    assert whole.volume == pytest.approx(sum(m.volume_mm3 for m in scene) * 1e-9, rel=1e-4)
    length = struct.unpack_from("<I", path.read_bytes(), 8)[0]
    assert length == path.stat().st_size


def test_vtp(scene: list[Mesh], tmp_path: Path) -> None:
    path = tmp_path / "scene.vtp"
    write_meshes(path, scene)
    tree = ET.parse(path)
    kinds = {"Float32": "<f4", "Int32": "<i4", "UInt8": "u1"}
    arrays = {
        node.get("Name"): np.frombuffer(b64decode(node.text or "")[4:], kinds[node.get("type", "")])
        for node in tree.iter("DataArray")
        if node.get("format") == "binary"
    }
    points = arrays["Points"].reshape(-1, 3)
    faces = arrays["connectivity"].reshape(-1, 3)
    whole = Mesh(LABELS.labels[0], points.astype(np.float64), faces)
    assert whole.volume_mm3 == pytest.approx(sum(mesh.volume_mm3 for mesh in scene), rel=1e-4)
    assert arrays["offsets"][-1] == 3 * len(faces)
    assert set(arrays["label"].tolist()) == {1, 2}


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_nothing_to_show(suffix: str, tmp_path: Path) -> None:
    write_meshes(tmp_path / f"empty{suffix}", [])
    assert (tmp_path / f"empty{suffix}").stat().st_size > 0


def test_unknown_format(scene: list[Mesh], tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"\.glb"):
        write_meshes(tmp_path / "scene.fbx", scene)
    assert list(tmp_path.iterdir()) == []
