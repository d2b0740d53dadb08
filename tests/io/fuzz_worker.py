"""Read damaged files in a process of its own; run by test_fuzz.py.

``python -m tests.io.fuzz_worker FOLDER FIRST LAST`` makes the damaged files FIRST to LAST - 1
(a function of their number alone), reads each, and prints one line of JSON: how each ended,
the slowest, and the memory at its peak. Each number is printed to stderr before its file is
read, so that a crash or a hang has a name. Address space is limited to what the tests allow.
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image

from medseg.core.errors import MedsegError
from medseg.io.formats import read_scan
from tests.phantoms import lopsided_volume, oblique_affine

LIMIT_BYTES = 2_000_000_000
SHAPE = (11, 8, 6)
_VALUES = (0, 1, 2, 9, 10, 13, 32, 45, 48, 57, 61, 127, 128, 254, 255)
_TEXTS = (
    b"-1", b"0", b"99", b"4294967296", b"999999999999", b"nan", b"inf", b"1e308", b"LIST",
    b"../../x", b"%d", b"\n", b"\n\n", b"gzip", b"raw", b"True", b"MET_LONG", b"double", b"(1,0",
)  # fmt: skip


def originals(folder: Path) -> list[tuple[str, bytes]]:
    """Whole files of every format, small: their names and (unpacked) contents."""
    voxels = lopsided_volume(SHAPE)[0]
    affine = oblique_affine()
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    made = [
        ("a.nii", nib.Nifti1Image(voxels, affine).to_bytes()),
        ("b.nii", nib.Nifti2Image(voxels.astype(np.float32), affine).to_bytes()),
        ("a.mgh", nib.MGHImage(voxels, affine).to_bytes()),
    ]
    for name, packed in (
        ("a.nrrd", False), ("b.nrrd", True), ("a.mha", False), ("b.mha", True), ("a.gipl", False),
        ("a.mhd", False), ("a.nhdr", True),
    ):  # fmt: skip
        sitk.WriteImage(image, str(folder / name), packed)
        made.append((name, (folder / name).read_bytes()))
    grey = Image.fromarray((voxels[..., 0].T * 300).astype(np.uint16))
    colours = Image.fromarray(np.stack([voxels[..., 0].T % 256] * 3, axis=-1).astype(np.uint8))
    for name, pages, options in (
        ("a.png", [grey], {}),
        ("b.png", [colours.quantize(8)], {}),
        ("a.jpg", [colours], {}),
        ("b.jpg", [colours], {"progressive": True}),
        ("a.tif", [grey, grey, grey], {"save_all": True}),
        ("b.tif", [colours, colours], {"save_all": True, "compression": "tiff_deflate"}),
        ("c.tif", [colours], {"compression": "tiff_lzw", "big_tiff": True}),
    ):
        more = {"append_images": pages[1:]} if len(pages) > 1 else {}
        file = io.BytesIO()
        kind = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[name[2:]]
        pages[0].save(file, kind, **options, **more)
        made.append((name, file.getvalue()))
    for place in (0, 2, 7):
        made.append((f"{made[place][0]}.gz", made[place][1]))
    return made


def damaged(name: str, content: bytes, number: int) -> bytes:
    """A copy with one to six faults, drawn from the number alone; inside or outside its gzip."""
    if not name.endswith(".gz"):
        return _faults(content, number)
    if number % 2:
        return _faults(gzip.compress(content, mtime=0), number)
    return gzip.compress(_faults(content, number), mtime=0)


def _faults(content: bytes, number: int) -> bytes:
    rng = np.random.Generator(np.random.PCG64(number))
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 7))):
        # Mostly in the header, where it hurts.
        reach = min(len(data), 600) if rng.random() < 0.8 else len(data)
        place = int(rng.integers(0, max(1, reach)))
        _fault(data, place, rng)
    return bytes(data)


def _fault(data: bytearray, place: int, rng: np.random.Generator) -> None:
    kind = int(rng.integers(0, 7))
    if kind == 0:
        data[place : place + 1] = bytes([int(rng.choice(_VALUES))])
    elif kind == 1:
        data[place : place + 1] = bytes([int(rng.integers(0, 256))])
    elif kind == 2:
        width = int(rng.choice([2, 4, 8]))
        data[place : place + width] = rng.bytes(width)
    elif kind == 3:
        data[place : place + 4] = int(rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1])).to_bytes(4)
    elif kind == 4:
        text = _TEXTS[int(rng.integers(0, len(_TEXTS)))]
        data[place : place + int(rng.integers(0, 4))] = text
    elif kind == 5:
        del data[int(rng.integers(place, max(place + 1, len(data)))) :]
    else:
        del data[place : place + int(rng.integers(1, 9))]


def outcome(path: Path) -> str:
    """Read a file whole: "scan" or the error's name; anything else is a fault of ours."""
    try:
        scan = read_scan(path)
        voxels = scan.voxels()
    except MedsegError as error:
        return type(error).__name__
    assert voxels.shape == (len(scan.channels), *scan.geometry.shape)
    return "scan"


def main(folder: Path, first: int, last: int) -> None:
    """Read the damaged files and print what came of them."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    made = originals(folder)
    ended: dict[str, int] = {}
    slowest: tuple[float, int] = (0.0, -1)
    for number in range(first, last):
        sys.stderr.write(f"{number}\n")
        name, content = made[number % len(made)]
        path = folder / name
        path.write_bytes(damaged(name, content, number))
        started = time.perf_counter()
        end = outcome(path)
        slowest = max(slowest, (time.perf_counter() - started, number))
        ended[end] = ended.get(end, 0) + 1
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report: dict[str, object] = {"ended": ended, "slowest_s": slowest[0], "at": slowest[1]}
    sys.stdout.write(json.dumps(report | {"peak_bytes": peak_bytes}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
