"""The cache holds what preprocessing gives, is made once, and survives what happens to runs."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from medseg.core.errors import FileError, OutputError
from medseg.core.scan import Scan
from medseg.datasets.dataset import Dataset
from medseg.datasets.inspect import verify_cases
from medseg.datasets.kept import KeptCases
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.training import cache
from medseg.training.cache import CachedCase, build_cache
from medseg.training.cache_store import StoredArray, read_case
from medseg.training.cache_turns import remove_stale, users_of
from medseg.training.loader import Batches
from medseg.transforms.steps import preprocessing
from tests.models import small_plan
from tests.phantoms import write_msd_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_msd_dataset(tmp_path_factory.mktemp("data"), cases=4))


def homes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize(
    "changes",
    [{}, {"crop": "nonzero"}, {"orientation": "stored", "axis_order": (2, 0, 1)}, {"ignore": 9}],
)
def test_it_holds_what_monais_steps_give(
    data: Dataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plan = small_plan(**changes)
    for case, cached in zip(data.cases, build_cache(tmp_path, data.cases, plan), strict=True):
        mask, grid = read_case_mask(case)
        pair = {"image": read_case_image(case), "label": Scan.from_array(mask, grid.geometry)}
        theirs = preprocessing(plan, with_mask=True)(pair)
        image, label = theirs["image"].as_tensor().numpy(), theirs["label"].as_tensor().numpy()[0]
        assert cached.image.shape == image.shape
        np.testing.assert_allclose(np.asarray(cached.image), image, rtol=2.5e-4, atol=1e-30)
        np.testing.assert_array_equal(np.asarray(cached.label), label)
        assert cached.label.dtype == np.uint8
        part = (slice(3, 9), slice(2, 14), slice(1, 5))
        np.testing.assert_array_equal(cached.image[:, *part], np.asarray(cached.image)[:, *part])
        for index, voxels in cached.places.items():
            assert (label[tuple(voxels.T)] == index).all()
        # Where some voxels are ignored, background is annotated like the rest.
        assert sorted(cached.places) == ([0, 1, 2] if "ignore" in changes else [1, 2])


def test_it_is_made_once_and_told_before(
    data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="medseg")
    build_cache(tmp_path, data.cases[:2], small_plan())
    assert "preprocessing 2 cases" in caplog.text
    assert "are free" in caplog.text
    stamps = [home.stat().st_mtime_ns for home in homes(tmp_path)]
    caplog.clear()
    told: list[Any] = []
    build_cache(tmp_path, data.cases, small_plan(), progress=lambda *facts: told.append(facts))
    assert "preprocessing 2 cases" in caplog.text
    assert told[-1][:2] == (4, 4)
    assert set(stamps) < {home.stat().st_mtime_ns for home in homes(tmp_path)}
    caplog.clear()
    build_cache(tmp_path, data.cases, small_plan())
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("changes", "another"),
    [
        ({"training.learning_rate": 0.5, "patch_size": (8, 8, 8)}, False),
        ({"spacing_mm": (1.5, 2.0, 2.0)}, True),
        ({"axis_order": (1, 0, 2)}, True),
        ({"resampling.image.order": 3}, True),
        ({"ignore": 7}, True),
    ],
)
def test_the_key_holds_what_changes_voxels_alone(
    data: Dataset, tmp_path: Path, changes: dict[str, Any], another: bool
) -> None:
    build_cache(tmp_path, data.cases[:1], small_plan())
    build_cache(tmp_path, data.cases[:1], small_plan(**changes))
    assert len(homes(tmp_path)) == 1 + another


def test_a_case_that_was_cut_short_is_made_again(data: Dataset, tmp_path: Path) -> None:
    (cached,) = build_cache(tmp_path, data.cases[:1], small_plan())
    whole = np.asarray(cached.image)
    (home,) = homes(tmp_path)
    (home / "image.b2nd").write_bytes((home / "image.b2nd").read_bytes()[:100])
    assert read_case(home) is None
    (again,) = build_cache(tmp_path, data.cases[:1], small_plan())
    np.testing.assert_array_equal(np.asarray(again.image), whole)
    (home / "note.json").unlink()
    build_cache(tmp_path, data.cases[:1], small_plan())
    assert read_case(home) is not None


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    folder = write_msd_dataset(tmp_path / "data", cases=2)
    first = open_dataset(folder)
    build_cache(tmp_path / "cache", first.cases, small_plan())
    write_msd_dataset(tmp_path / "other", cases=2, seed=5)
    shutil.copy(tmp_path / "other/imagesTr/case_000.nii.gz", folder / "imagesTr/case_000.nii.gz")
    build_cache(tmp_path / "cache", open_dataset(folder).cases, small_plan())
    assert len(homes(tmp_path / "cache")) == 3


def test_cases_in_memory_are_not_read_and_give_the_same(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, kept = small_plan(spacing_mm=(1.5, 2.0, 2.0)), KeptCases()
    build_cache(tmp_path / "read", data.cases, plan)
    verify_cases(data.cases, data, look=kept.keep).raise_problems()
    assert kept.nbytes > 0

    def refuse(case: Any) -> Any:
        raise AssertionError(f"{case.id} is read")

    for name in ("read_case_image", "read_case_mask"):
        monkeypatch.setattr(cache, name, refuse)
    build_cache(tmp_path / "kept", data.cases, plan, kept=kept)
    assert kept.nbytes == 0
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "read", tmp_path / "kept")
    )
    assert one == two
    assert len(one) >= 4 * len(data.cases)


def test_a_full_disk_is_told_before_anything_is_written(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"free space for 4 cases, got 0 MB.*cache clean"):
        build_cache(tmp_path, data.cases, small_plan())
    assert homes(tmp_path) == []


def test_two_writers_at_once_harm_nothing(data: Dataset, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(build_cache, tmp_path, data.cases, small_plan()) for _ in range(3)]
        made = [run.result() for run in runs]
    assert len(homes(tmp_path)) == 4
    assert all(read_case(home) is not None for home in homes(tmp_path))
    for one, other in zip(made[0], made[2], strict=True):
        np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))


# Another process that makes or reads a cache: it waits for a line, makes it case by case, tells
# how many cases it made itself, and holds them until its input ends.
_ANOTHER = """
import sys, time
from pathlib import Path
from medseg.datasets.open import open_dataset
from medseg.training import cache
from tests.models import small_plan

made, real = [], cache._preprocess

def slowly(case, plan, home, **rest):
    made.append(case.id)
    print("making", flush=True)
    time.sleep(float(sys.argv[3]))
    real(case, plan, home, **rest)

cache._preprocess = slowly
print("ready", flush=True)
sys.stdin.readline()
cases = open_dataset(Path(sys.argv[1])).cases
held = cache.build_cache(Path(sys.argv[2]), cases, small_plan(), workers=1)
print("made", len(made), flush=True)
sys.stdin.readline()
"""


@contextmanager
def another(data: Dataset, folder: Path, *, case_s: float = 0.2) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to begin."""
    command = [sys.executable, "-c", _ANOTHER, str(data.folder), str(folder), str(case_s)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert told(child) == "ready"
            yield child
        finally:
            child.kill()


def told(child: subprocess.Popen[str], *, say: str = "") -> str:
    """Its next line; what is said comes first."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(say)
    child.stdin.flush()
    return child.stdout.readline().strip()


def test_two_processes_share_the_work(data: Dataset, tmp_path: Path) -> None:
    with another(data, tmp_path) as one, another(data, tmp_path) as two:
        for child in (one, two):
            assert told(child, say="go\n") == "making"
        counts = []
        for child in (one, two):
            while (line := told(child)) == "making":
                pass
            counts.append(int(line.removeprefix("made ")))
        assert sum(counts) == len(data.cases) == 4
        assert min(counts) >= 1
    assert all(read_case(home) is not None for home in homes(tmp_path))
    assert len(homes(tmp_path)) == 4


def test_a_case_of_a_process_that_was_killed_is_made_by_another(
    data: Dataset, tmp_path: Path
) -> None:
    notes: list[str] = []
    with another(data, tmp_path, case_s=60) as child:
        assert told(child, say="go\n") == "making"

        def note(done: int, total: int, text: str) -> None:
            notes.append(text)
            child.kill()

        assert len(build_cache(tmp_path, data.cases, small_plan(), progress=note)) == 4
    assert notes[0] == f"{data.cases[0].id}, which another process makes"
    assert notes[-1] == data.cases[3].id
    remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == homes(tmp_path)


def test_who_uses_a_cache_is_known_as_long_as_it_does(data: Dataset, tmp_path: Path) -> None:
    build_cache(tmp_path, data.cases, small_plan())
    with another(data, tmp_path) as child:
        assert users_of(tmp_path) == []
        assert told(child, say="go\n") == "made 0"
        (user,) = users_of(tmp_path)
        assert user.pid == child.pid
        told(child, say="end\n")
        child.wait()
        assert users_of(tmp_path) == []
    held = build_cache(tmp_path, data.cases, small_plan())
    assert list(tmp_path.glob(".reading-*"))
    del held
    assert not list(tmp_path.glob(".*"))


def test_batches_are_those_of_arrays_in_memory(data: Dataset, tmp_path: Path) -> None:
    plan, device = small_plan(), torch.device("cpu")
    stored = build_cache(tmp_path, data.cases, plan)
    held = [
        CachedCase(case.case_id, np.asarray(case.image), np.asarray(case.label), dict(case.places))
        for case in stored
    ]
    one, two = (Batches(cases, plan, seed=3, device=device) for cases in (stored, held))
    threaded = Batches(stored, plan, seed=3, device=device, workers=3).iterate(0)
    for step in range(4):
        first, second, third = one.batch(step), two.batch(step), next(threaded)
        for other in (second, third):
            assert torch.equal(first[0], other[0])
            assert torch.equal(first[1].labels, other[1].labels)
    threaded.close()


def test_nothing_that_runs_code_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "image.b2nd"
    for side in "ab":
        blosc2.asarray(np.ones((4, 4)), urlpath=str(tmp_path / f"{side}.b2nd"), mode="w")
    a, b = (blosc2.open(str(tmp_path / f"{side}.b2nd")) for side in "ab")
    (a + b).save(urlpath=str(path))
    with pytest.raises(FileError, match="expected a case of the cache"):
        StoredArray(path, (4, 4), np.dtype(np.float64))[...]
    path.write_bytes(b"not blosc2")
    with pytest.raises(FileError, match="--resume"):
        StoredArray(path, (4, 4), np.dtype(np.float64))[...]


def test_a_cache_is_made_without_monai(data: Dataset) -> None:
    code = (
        "import sys; from medseg.training.cache import build_cache; "
        "sys.exit(any(name in sys.modules for name in ('monai', 'blosc2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
