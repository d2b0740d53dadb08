"""Surfaces as STL, PLY, OBJ, VTP and GLB.

All but GLB hold RAS+ coordinates in mm and say so in the way that 3D Slicer reads. A GLB scene
holds them too, below one node that turns them to glTF's metres with y upwards and the
patient facing +z (glTF 2.0, Khronos Group, 2021). Numbers are float32.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError
from medseg.core.results import Mesh
from medseg.io.atomic import write_bytes

_SPACE = "SPACE=RAS"
# Column by column: x to the left of the picture, y upwards, z to the viewer; mm to metres.
_GLTF_FROM_RAS_MM = (-0.001, 0, 0, 0, 0, 0, 0.001, 0, 0, 0.001, 0, 0, 0, 0, 0, 1)


def write_meshes(path: str | Path, meshes: Sequence[Mesh]) -> None:
    """Write surfaces into one file, in the format that its suffix names; whole or not at all.

    PLY, VTP, OBJ and GLB keep the colours, OBJ and GLB also the names of the labels; STL has
    neither.

    Raises:
        FileError: There is no such format.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise FileError(str(path), expected=", ".join(MESH_SUFFIXES), got=path.suffix or "none")
    write_bytes(path, write(list(meshes)))


def _joined(meshes: Sequence[Mesh]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(V, 3) float32 and (F, 3) int32 of all."""
    starts = np.cumsum([0, *(len(mesh.vertices_mm) for mesh in meshes)])
    points = [mesh.vertices_mm.astype("<f4") for mesh in meshes]
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]
    empty = np.zeros((0, 3))
    return (
        np.concatenate([*points, empty.astype("<f4")]),
        np.concatenate([*faces, empty]).astype("<i4"),
    )


def _colours(meshes: Sequence[Mesh]) -> NDArray[np.uint8]:
    """(V, 3)"""
    rows = [
        np.tile(np.array(mesh.label.colour, dtype=np.uint8), (len(mesh.vertices_mm), 1))
        for mesh in meshes
    ]
    return np.concatenate([*rows, np.zeros((0, 3), dtype=np.uint8)])


def _stl(meshes: Sequence[Mesh]) -> bytes:
    points, faces = _joined(meshes)
    corners = points[faces]
    rows = np.zeros(len(faces), dtype=[("numbers", "<f4", (4, 3)), ("attribute", "<u2")])
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    rows["numbers"][:, 0] = normals / np.where(length == 0, 1, length)
    rows["numbers"][:, 1:] = corners
    head = f"medseg {_SPACE}".encode().ljust(80)
    return head + struct.pack("<I", len(faces)) + rows.tobytes()


def _ply(meshes: Sequence[Mesh]) -> bytes:
    points, faces = _joined(meshes)
    vertices = np.zeros(len(points), dtype=[("place", "<f4", 3), ("colour", "u1", 3)])
    vertices["place"], vertices["colour"] = points, _colours(meshes)
    rows = np.zeros(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    head = [
        "ply", "format binary_little_endian 1.0", f"comment {_SPACE}",
        f"element vertex {len(points)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
        f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", "",
    ]  # fmt: skip
    return "\n".join(head).encode() + vertices.tobytes() + rows.tobytes()


def _obj(meshes: Sequence[Mesh]) -> bytes:
    lines = [f"# medseg {_SPACE}"]
    before = 1
    for mesh in meshes:
        red, green, blue = (part / 255 for part in mesh.label.colour)
        lines.append(f"o {' '.join(mesh.label.name.split())}")
        row = f"v %.4f %.4f %.4f {red:.4f} {green:.4f} {blue:.4f}"
        lines += [row % (x, y, z) for x, y, z in mesh.vertices_mm.tolist()]
        lines += ["f %d %d %d" % (a, b, c) for a, b, c in (mesh.faces + before).tolist()]  # noqa: UP031
        before += len(mesh.vertices_mm)
    return ("\n".join(lines) + "\n").encode()


def _vtp(meshes: Sequence[Mesh]) -> bytes:
    points, faces = _joined(meshes)
    values = [np.full(len(m.vertices_mm), m.label.value, dtype="<i4") for m in meshes]
    labels = np.concatenate([*values, np.zeros(0, dtype="<i4")])
    ends = 3 * np.arange(1, len(faces) + 1, dtype="<i4")
    space = " ".join(str(byte) for byte in b"RAS\0")
    return "\n".join([
        '<?xml version="1.0"?>',
        '<VTKFile type="PolyData" version="0.1" byte_order="LittleEndian" header_type="UInt32">',
        "<PolyData>",
        '<FieldData><DataArray type="String" Name="SPACE" NumberOfTuples="1" format="ascii">'
        f"{space}</DataArray></FieldData>",
        f'<Piece NumberOfPoints="{len(points)}" NumberOfVerts="0" NumberOfLines="0"'
        f' NumberOfStrips="0" NumberOfPolys="{len(faces)}">',
        '<PointData Scalars="colour">',
        _vtk_array("colour", "UInt8", _colours(meshes), parts=3),
        _vtk_array("label", "Int32", labels),
        "</PointData>",
        "<Points>", _vtk_array("Points", "Float32", points, parts=3), "</Points>",
        "<Polys>",
        _vtk_array("connectivity", "Int32", faces),
        _vtk_array("offsets", "Int32", ends),
        "</Polys>",
        "</Piece></PolyData></VTKFile>", "",
    ]).encode()  # fmt: skip


def _vtk_array(name: str, kind: str, array: NDArray[Any], *, parts: int = 1) -> str:
    data = array.tobytes()
    text = b64encode(struct.pack("<I", len(data)) + data).decode()
    return (
        f'<DataArray type="{kind}" Name={quoteattr(name)} NumberOfComponents="{parts}"'
        f' format="binary">{text}</DataArray>'
    )


def _glb(meshes: Sequence[Mesh]) -> bytes:
    """One node per label below the one that turns the axes; colours are materials."""
    meshes = [mesh for mesh in meshes if len(mesh.faces)]
    scene: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "medseg"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "RAS mm", "matrix": _GLTF_FROM_RAS_MM}],
    }
    if not meshes:
        return _chunks(scene, b"")
    scene["nodes"][0]["children"] = list(range(1, len(meshes) + 1))
    scene |= {key: [] for key in ("meshes", "materials", "accessors", "bufferViews")}
    binary = bytearray()
    for number, mesh in enumerate(meshes):
        points = mesh.vertices_mm.astype("<f4")
        reach = {"min": points.min(axis=0).tolist(), "max": points.max(axis=0).tolist()}
        parts = (
            (points, {"componentType": 5126, "type": "VEC3", **reach}, 34962),
            (_vertex_normals(mesh), {"componentType": 5126, "type": "VEC3"}, 34962),
            (mesh.faces.astype("<u4").ravel(), {"componentType": 5125, "type": "SCALAR"}, 34963),
        )
        for array, facts, target in parts:
            view = {"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes}
            scene["accessors"].append(
                {"bufferView": len(scene["bufferViews"]), "count": len(array), **facts}
            )
            scene["bufferViews"].append({**view, "target": target})
            binary += array.tobytes()
        at = 3 * number
        scene["nodes"].append({"name": mesh.label.name, "mesh": number})
        attributes = {"POSITION": at, "NORMAL": at + 1}
        piece = {"attributes": attributes, "indices": at + 2, "material": number}
        scene["meshes"].append({"name": mesh.label.name, "primitives": [piece]})
        scene["materials"].append({"name": mesh.label.name, **_material(mesh.label.colour)})
    scene["buffers"] = [{"byteLength": len(binary)}]
    return _chunks(scene, bytes(binary))


def _material(colour: tuple[int, int, int]) -> dict[str, Any]:
    # glTF wants linear light; colours of labels are as screens show them.
    linear = [(part / 255) ** 2.2 for part in colour]
    return {
        "pbrMetallicRoughness": {
            "baseColorFactor": [*linear, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7,
        },
    }  # fmt: skip


def _vertex_normals(mesh: Mesh) -> NDArray[Any]:
    a, b, c = (mesh.vertices_mm[mesh.faces[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    summed = np.zeros((len(mesh.vertices_mm), 3))
    for corner in range(3):
        for axis in range(3):
            summed[:, axis] += np.bincount(
                mesh.faces[:, corner], across[:, axis], minlength=len(summed)
            )
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    # A normal must have length 1, also where it is of no account.
    fallen = np.where(length == 0, (0.0, 0.0, 1.0), summed / np.where(length == 0, 1, length))
    return np.asarray(fallen.astype("<f4"))


def _chunks(scene: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(scene, separators=(",", ":")).encode()
    parts = [struct.pack("<I4s", len(data), kind) + data for kind, data in (
        (b"JSON", text + b" " * (-len(text) % 4)),
        (b"BIN\0", binary + b"\0" * (-len(binary) % 4)),
    ) if data]  # fmt: skip
    body = b"".join(parts)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


_WRITERS: dict[str, Callable[[Sequence[Mesh]], bytes]] = {
    ".stl": _stl, ".ply": _ply, ".obj": _obj, ".vtp": _vtp, ".glb": _glb,
}  # fmt: skip
MESH_SUFFIXES = tuple(_WRITERS)
