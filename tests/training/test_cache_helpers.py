"""Processes beside this one make the same cases, and never stand in its way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.core.errors import FileError
from medseg.core.labels import LabelSet
from medseg.datasets.dataset import Case, Dataset, OrganMask
from medseg.datasets.open import open_dataset
from medseg.io.wire import from_line, to_line
from medseg.training import cache, cache_helpers
from medseg.training.cache import build_cache
from medseg.training.cache_helpers import CacheHelper, _fields, helped, one_early
from medseg.training.cache_service import _case
from tests.models import small_plan
from tests.phantoms import write_msd_dataset


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return open_dataset(write_msd_dataset(tmp_path / "data", cases=4))


def test_a_helper_makes_what_this_process_makes(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = build_cache(tmp_path / "alone", data.cases, small_plan(), workers=1)
    folder, mine, real = tmp_path / "helped", [], cache._preprocess

    def after_the_helper(case: Case, plan: Any, home: Path, *, key: str) -> None:
        mine.append(case.id)
        wait_until(lambda: any(folder.glob("*/note.json")))
        real(case, plan, home, key=key)

    monkeypatch.setattr(cache, "_preprocess", after_the_helper)
    with CacheHelper() as helper:
        shared = build_cache(folder, data.cases, small_plan(), workers=2, helpers=[helper])
    assert mine[0] == data.cases[0].id
    assert 1 <= len(mine) < 4
    assert sorted(folder.glob("*")) == sorted(note.parent for note in folder.glob("*/note.json"))
    assert [case.case_id for case in shared] == [case.id for case in data.cases]
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))
        np.testing.assert_array_equal(np.asarray(one.label), np.asarray(other.label))


def wait_until(true: Any, limit_s: float = 60) -> None:
    ends = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)


def test_a_case_comes_through_the_pipe_whole() -> None:
    case = Case(
        "α 1", (Path("a/t1.nii.gz"), Path("b.mha")), None, "patient", series=("", "1.2.3"),
        organs=(OrganMask(3, Path("liver.nii.gz")), OrganMask(1, Path("spleen.nii.gz"))),
        structures=LabelSet.from_names({2: "liver", 7: "left kidney"}),
        annotated=(1, 3), missing=(2,),
    )  # fmt: skip
    assert _case(from_line(to_line(_fields(case)))) == case


def test_a_helper_that_dies_is_not_missed(data: Dataset, tmp_path: Path) -> None:
    with CacheHelper() as helper:
        helper._process.kill()
        helper._process.wait()
        made = build_cache(tmp_path / "c", data.cases, small_plan(), workers=2, helpers=[helper])
    assert len(made) == 4


def test_a_fault_is_told_by_this_process(data: Dataset, tmp_path: Path) -> None:
    data.cases[3].images[0].write_bytes(b"no scan")
    with CacheHelper() as helper, pytest.raises(FileError, match=data.cases[3].images[0].name):
        build_cache(tmp_path / "c", data.cases, small_plan(), workers=2, helpers=[helper])
    assert helper._process.poll() is not None


def test_a_helper_ends_with_the_process_that_started_it() -> None:
    start = (
        "from medseg.training.cache_helpers import CacheHelper\n"
        "import time\n"
        "print(CacheHelper()._process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        helper = int(parent.stdout.readline())
        os.kill(helper, 0)
        parent.kill()
    wait_until(lambda: not is_alive(helper))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    # Nobody may have asked yet what became of it.
    state = Path(f"/proc/{pid}/stat")
    return not state.is_file() or ") Z " not in state.read_text()


class Recorded:
    """A helper that only says what it was told to make."""

    started = 0

    def __init__(self) -> None:
        type(self).started += 1
        self.ended, self.told = False, [""]

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *about: object) -> None:
        self.end()

    def end(self) -> None:
        self.ended = True

    def make(self, homes: Any, plan: Any, *, key: str) -> None:
        self.told = [case.id for case, _ in homes]


def test_as_many_helpers_as_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_helpers, "CacheHelper", Recorded)
    monkeypatch.setattr(Recorded, "started", 0)
    many = [(Case(str(n), (), None), Path(str(n))) for n in range(650)]

    def threads(number: int, at_once: int, helpers: Any = ()) -> int:
        with helped(many[:number], small_plan(), key="", at_once=at_once, helpers=helpers) as left:
            return left

    early = Recorded()
    for number, at_once, helpers, left in (
        (299, 8, (), 8), (300, 8, (), 7), (650, 8, (), 6), (650, 2, (), 1), (650, 1, (), 1),
        (4, 2, [early], 1), (650, 8, [early], 6), (4, 1, [early], 1),
    ):  # fmt: skip
        assert threads(number, at_once, helpers) == left
    assert Recorded.started == 1 + 1 + 2 + 1 + 1
    assert early.ended
    two = [Recorded(), Recorded()]
    assert threads(5, 3, two) == 1
    assert two[0].told == ["4", "3", "2", "1", "0"]
    assert two[1].told == ["2", "1", "0", "4", "3"]


def test_one_core_gets_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_helpers, "CacheHelper", Recorded)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with one_early() as helpers:
        assert helpers == ()
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with one_early() as helpers:
        (helper,) = helpers
        assert isinstance(helper, Recorded)
    assert helper.ended


def test_ctrl_c_is_the_parents_to_decide() -> None:
    with CacheHelper() as helper:
        # Until it has loaded, the signal's usual effect stands; so it is waited for.
        time.sleep(0.1)
        status = Path(f"/proc/{helper._process.pid}/status")
        if not status.is_file():
            pytest.skip("no /proc here, which tells what a process ignores")

        def ignores() -> bool:
            (line,) = (row for row in status.read_text().splitlines() if row.startswith("SigIgn"))
            return bool(int(line.split()[1], 16) >> (signal.SIGINT - 1) & 1)

        wait_until(ignores)
