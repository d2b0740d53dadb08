"""Arrays on the disk against the same in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import OutputError
from medseg.io import scratch
from medseg.io.scratch import ScratchArray


@given(data=st.data())
def test_boxes_are_those_of_an_array_in_memory(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=4))
    order = data.draw(st.permutations(range(len(shape))))
    wanted = np.zeros(shape, np.int16)
    rng = np.random.default_rng(0)

    def box() -> tuple[slice, ...]:
        ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
        return tuple(slice(*pair) for pair in ends)

    # Short runs and cheap calls, so that small arrays take every way through the file.
    with (
        pytest.MonkeyPatch.context() as patch,
        ScratchArray(tmp_path_factory.getbasetemp(), shape, "int16", order=order) as array,
    ):
        patch.setattr(scratch, "_CALL_BYTES", data.draw(st.sampled_from([0, 8, 10_000])))
        patch.setattr(scratch, "_MAX_RUN_BYTES", data.draw(st.sampled_from([1, 40, 1 << 24])))
        for _ in range(3):
            place = box()
            values = rng.integers(-9999, 9999, wanted[place].shape)
            wanted[place] = values
            array.write(place, values)
            seen = box()
            assert np.array_equal(array.read(seen), wanted[seen])
        assert np.array_equal(array.read((slice(None),) * len(shape)), wanted)


def test_leaves_no_file(tmp_path: Path) -> None:
    with ScratchArray(tmp_path, (4, 5), "uint8") as array:
        array.write((slice(0, 2), slice(None)), np.ones((2, 5), np.uint8))
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"2\.5e-06 GB .* got 1e-06 GB"):
        ScratchArray(tmp_path, (50, 50), "uint8")


@pytest.mark.parametrize("part", [slice(0, 6), slice(-1, 2), slice(0, 4, 2), slice(3, 1)])
def test_boxes_outside_are_refused(tmp_path: Path, part: slice) -> None:
    with ScratchArray(tmp_path, (5, 5), "uint8") as array, pytest.raises(IndexError):
        array.read((part, slice(None)))
