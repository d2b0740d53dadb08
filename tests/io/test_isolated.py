"""The worker process: equal scans, and crashes, hangs and errors that stay in it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from medseg.core.errors import FileError, GeometryError, ResourceError
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.io import isolated
from medseg.io.dicom_series import find_series, read_series
from medseg.io.formats import read_scan
from medseg.io.isolated import IsolatedReader
from medseg.io.wire import from_line, to_line
from tests.dicom_phantoms import Series, random_voxels
from tests.io import faulty_reader
from tests.io.test_slabs import SOURCES
from tests.phantoms import lopsided_volume, oblique_affine, write_nifti


@pytest.fixture(scope="module")
def reader() -> Iterator[IsolatedReader]:
    with IsolatedReader() as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def _workers_know_faulty_readers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated, "_START", faulty_reader.worker_with_faults())
        yield


def good(folder: Path) -> Path:
    return write_nifti(folder / "good.nii.gz", lopsided_volume()[0], oblique_affine())


def workers() -> list[psutil.Process]:
    children = psutil.Process().children()
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if "isolated" in " ".join(child.cmdline())]


def test_all_of_a_scan_is_sent() -> None:
    # A field that is new here must be sent too, or be left out on purpose (as these three are:
    # which channels are missing is known to who joins scans, not to who reads one).
    known = {"geometry", "channels", "modality", "source", "forms", "slices"}
    assert {field.name for field in fields(Scan)} == known | {"load", "load_slabs", "missing"}


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_scan_as_in_this_process(
    tmp_path: Path, name: str, reader: IsolatedReader
) -> None:
    path = SOURCES[name][0](tmp_path)
    here, there = read_scan(path), reader.read("scan", path, source="x")
    assert there.geometry == here.geometry
    np.testing.assert_array_equal(there.geometry.affine_ras, here.geometry.affine_ras)
    assert (there.channels, there.modality, there.source, there.slices) == (
        here.channels, here.modality, here.source, here.slices,
    )  # fmt: skip
    if here.forms is None:
        assert there.forms is None
    else:
        assert there.forms is not None
        assert there.forms.version == here.forms.version
        assert there.forms.grid_shape == here.forms.grid_shape
        np.testing.assert_equal(there.forms.fields, here.forms.fields)  # may hold NaN
    voxels = here.voxels()
    assert there.voxels().dtype == voxels.dtype
    np.testing.assert_array_equal(there.voxels(), voxels)
    np.testing.assert_array_equal(there.read_slab(1, 3), voxels[..., 1:3])


def test_uneven_slices_keep_their_places(tmp_path: Path, reader: IsolatedReader) -> None:
    series = Series(random_voxels(), places=[0.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    path = series.write(tmp_path / "a")
    here = read_scan(path, accept_gaps=True)
    there = reader.read("scan", path, accept_gaps=True, source="x")
    assert there.slices == here.slices
    assert there.slices is not None
    np.testing.assert_array_equal(there.voxels(), here.voxels())


@pytest.mark.parametrize("layout", ["plain", "big endian", "backwards", "gaps", "one value"])
def test_voxels_of_any_layout(layout: str, reader: IsolatedReader) -> None:
    expected = faulty_reader.strange(layout).voxels()
    voxels = reader.read("strange", layout, source="x").voxels()
    assert voxels.dtype == expected.dtype
    np.testing.assert_array_equal(voxels, expected)


@pytest.mark.parametrize(
    ("how", "told"),
    [("abort", "SIGABRT"), ("segfault", "SIGSEGV"), ("exit", "exit code 3")],
)
@pytest.mark.parametrize("when", ["header", "pixels"])
def test_a_crash_is_an_error_of_that_file(
    tmp_path: Path, how: str, told: str, when: str, reader: IsolatedReader
) -> None:
    path = good(tmp_path)
    bad: tuple[Any, ...] = ("pixels_fail", path, how)
    if when == "header":
        bad = ("read_or_fail", tmp_path / f"{how}.nrrd")
    with pytest.raises(FileError, match=rf"b/c\.nrrd.*crashed on this file \({told}\)"):
        reader.read(*bad, source="b/c.nrrd")
    assert reader.read("scan", path, source="x").voxels().shape == (1, 11, 8, 6)


def test_a_hang_is_an_error_of_that_file(tmp_path: Path) -> None:
    path = good(tmp_path)
    with IsolatedReader(limit_s=5.0) as reader:
        reader.read("scan", path, source="x")
        reader._limit_s = 0.5
        started = time.perf_counter()
        with pytest.raises(FileError, match=r"hang\.nrrd: .*still at it after 0\.5 s"):
            reader.read("pixels_fail", path, "hang", source="hang.nrrd")
        assert time.perf_counter() - started < 4.0
        reader._limit_s = 30.0
        assert reader.read("scan", path, source="x").channels == ("0",)


def test_errors_arrive_as_themselves(tmp_path: Path, reader: IsolatedReader) -> None:
    reader.read("scan", good(tmp_path), source="x")
    before = workers()
    (tmp_path / "bad.nrrd").write_bytes(b"NRRD0004\ntype: short\n\n")
    folder = Series(random_voxels(), places=[0.0, 1.0, 2.0, 4.0, 5.0, 6.0]).write(tmp_path / "a")
    for path, kind in ((tmp_path / "bad.nrrd", FileError), (folder, GeometryError)):
        with pytest.raises(kind) as here:
            read_scan(path)
        with pytest.raises(kind) as there:
            reader.read("scan", path, source="x")
        assert str(there.value) == str(here.value)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: by\nzero"):
        reader.read("pixels_fail", good(tmp_path), "fault", source="x")
    assert workers() == before  # none of them cost a new worker


def test_noise_is_dropped_and_the_log_arrives(
    tmp_path: Path, reader: IsolatedReader, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="medseg"):
        scan = reader.read("talking", good(tmp_path), source="x")
    assert scan.voxels().shape == (1, 11, 8, 6)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", "told 7")]


def test_a_dicom_series_is_asked_for_whole(tmp_path: Path, reader: IsolatedReader) -> None:
    Series(random_voxels()).write(tmp_path / "a")
    (info,) = find_series(tmp_path / "a")
    assert from_line(to_line(info)) == info
    there = reader.read("series", info, accept_gaps=False, source="x")
    np.testing.assert_array_equal(there.voxels(), read_series(info).voxels())


def test_a_mask_and_the_labels_that_are_wanted(tmp_path: Path, reader: IsolatedReader) -> None:
    labels = LabelSet.from_names({1: "liver", 7: "left kidney"})
    assert from_line(to_line([labels, (1, -0.5, None), {"a": Path("b")}])) == [
        labels, (1, -0.5, None), {"a": Path("b")},
    ]  # fmt: skip
    values = lopsided_volume()[0] % 3 == 0
    path = write_nifti(tmp_path / "m.nii", values.astype(np.float32), oblique_affine())
    scan = reader.read("mask", path, image=None, labels=labels, source="x")
    assert scan.voxels().dtype.kind == "i"
    np.testing.assert_array_equal(scan.voxels()[0], values)


def test_only_the_table_can_be_asked_for(tmp_path: Path, reader: IsolatedReader) -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'os'"):
        reader.read("os", "system", source="x")
    with pytest.raises(TypeError, match=r"no builtins\.function can be sent"):
        reader.read("scan", good, source="x")
    with pytest.raises(KeyError):
        from_line(b'{"Popen": {"args": "ls"}}')


def test_the_worker_loads_no_deep_learning(reader: IsolatedReader) -> None:
    with pytest.raises(RuntimeError) as caught:
        reader.read("loaded_modules", source="x")
    loaded = set(str(caught.value).split())
    assert {"medseg", "nibabel"} <= loaded
    assert not loaded & {"torch", "monai", "pytest"}


def test_twenty_files_with_crashes_among_them(tmp_path: Path) -> None:
    names = [f"case_{number}" for number in range(18)]
    names[9:9] = ["abort", "segfault"]
    paths = [
        write_nifti(tmp_path / f"{name}.nii", lopsided_volume(seed=n)[0], oblique_affine())
        for n, name in enumerate(names)
    ]
    read, failed, before = {}, [], workers()
    with IsolatedReader() as reader:
        for name, path in zip(names, paths, strict=True):
            try:
                read[name] = reader.read("read_or_fail", path, source=str(path))
            except FileError as error:
                failed.append((name, error.what))
        assert len(workers()) == 1 + len(before)
    assert failed == [(name, str(tmp_path / f"{name}.nii")) for name in ("abort", "segfault")]
    for n, name in enumerate(names):
        if name in read:
            np.testing.assert_array_equal(read[name].voxels()[0], lopsided_volume(seed=n)[0])
    assert workers() == before


def test_a_worker_that_cannot_start_blames_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_START", "raise SystemExit(7)")
    with (
        IsolatedReader() as reader,
        pytest.raises(ResourceError, match=r"expected one that starts, got exit code 7"),
    ):
        reader.read("scan", good(tmp_path), source="x")


def test_a_worker_that_dies_in_between_is_replaced(tmp_path: Path) -> None:
    read = ("scan", good(tmp_path))
    with IsolatedReader() as reader:
        before = workers()
        reader.read(*read, source="x")
        (own,) = set(workers()) - set(before)
        own.kill()
        own.wait(10)
        assert reader.read(*read, source="x").channels == ("0",)


def test_closing_ends_a_scan_that_is_being_read(tmp_path: Path) -> None:
    path = good(tmp_path)
    reader = IsolatedReader()
    reader.read("scan", path, source="x")
    before = workers()
    errors: list[Exception] = []

    def hang() -> None:
        try:
            reader.read("pixels_fail", path, "hang", source="x")
        except FileError as error:
            errors.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.3)
    reader.close()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert len(workers()) == len(before) - 1
    with pytest.raises(RuntimeError, match="closed"):
        reader.read("scan", path, source="x")


_INTERRUPTED = """
import sys
from medseg.io import isolated
from medseg.io.isolated import IsolatedReader
from tests.io.faulty_reader import worker_with_faults
isolated._START = worker_with_faults()
with IsolatedReader() as reader:
    reader.read("scan", sys.argv[1], source="x")
    print(reader._worker.pid, flush=True)
    reader.read("pixels_fail", sys.argv[1], "hang", source="x")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal to a group")
def test_ctrl_c_leaves_no_worker(tmp_path: Path, repository: Path) -> None:
    # No guard for __main__: the script of a user must not be run by the worker once more.
    script = tmp_path / "script.py"
    script.write_text(_INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, script, good(tmp_path)], start_new_session=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), *sys.path])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: parent and worker get it
    _, told = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in told
    assert not psutil.pid_exists(worker)
