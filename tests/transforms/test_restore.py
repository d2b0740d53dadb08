"""Restoring block by block: against the whole at once, and where nothing is interpolated."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn.functional import interpolate

from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.transforms import winners as winners_module
from medseg.transforms.lines import Line, spread
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.restore import ArraySink, Outlet, Restorer, restore_classes
from medseg.transforms.winners import class_dtype, labels_between, winners

CPU = torch.device("cpu")


def smooth(classes: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Logits of blobs."""
    coarse = torch.randn(1, classes, 4, 5, 4, generator=torch.Generator().manual_seed(seed)) * 5
    return interpolate(coarse, size=shape, mode="trilinear")[0]


@given(st.integers(1, 40), st.integers(1, 40))
def test_lines_agree_with_torch_and_scipy(old: int, new: int) -> None:
    values = torch.randn(1, 1, old, generator=torch.Generator().manual_seed(old))
    line = Line.between(old, new)
    theirs = interpolate(values, size=new, mode="linear", align_corners=False)[0]
    span = slice(0, new)
    torch.testing.assert_close(
        spread(values[0], line.picks(span, 0, CPU), dim=1), theirs, atol=1e-5, rtol=1e-5
    )
    rows = values[0].T.contiguous()
    torch.testing.assert_close(
        spread(rows, line.picks(span, 0, CPU), dim=0), theirs.T, atol=1e-5, rtol=1e-5
    )
    near = Line.between(old, new, nearest=True)
    places = (np.arange(new) + 0.5) * (old / new) - 0.5
    expected = ndimage.map_coordinates(values[0, 0].numpy(), [places], order=0, mode="nearest")
    np.testing.assert_array_equal(values[0, 0].numpy()[near.below], expected)


def test_lines_by_hand() -> None:
    line = Line.between(2, 4)
    assert line.below.tolist() == [0, 0, 0, 1]
    assert line.above.tolist() == [1, 1, 1, 1]
    assert line.weight.tolist() == [0, 0.25, 0.75, 0]
    # With the first voxel alone nothing is ready, since its neighbour counts too.
    assert [line.ready(end) for end in (0, 1, 2)] == [0, 0, 4]
    assert line.source(slice(1, 3)) == slice(0, 2)
    same = Line.between(5, 5)
    assert [same.ready(end) for end in range(6)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("activation", ["softmax", "regions"])
def test_blocks_give_what_the_whole_gives(order: tuple[int, int, int], activation: str) -> None:
    shape = (13, 10, 11)
    for number, turn in enumerate(ALL_ORIENTATIONS[:: 7 if activation == "softmax" else 11]):
        geometry = Geometry((21, 17, 26), np.diag([1.0, 1.3, 0.8, 1.0])).reoriented(turn)
        record = RestoreRecord.of(geometry, (None, None, None))
        working = record.oriented.with_shape(shape)
        crop = (slice(2, 20), slice(0, 15), slice(3, 17)) if number % 2 else None
        record = replace(record, working=working, crop=crop, nearest=(False, number == 2, False))
        logits = smooth(7, shape, number)
        whole = restore_classes(logits, record, activation=activation)  # type: ignore[arg-type]
        sink = ArraySink(record.target.shape, np.uint8)
        restorer = Restorer(record, order, sink, activation=activation)  # type: ignore[arg-type]
        a, b, _ = order
        edges = {a: [0, 1, 5, 9, shape[a]], b: [0, 4, 5, shape[b]]}
        for first in zip(edges[a], edges[a][1:], strict=False):
            for second in zip(edges[b], edges[b][1:], strict=False):
                box = [slice(None)] * 3
                box[a], box[b] = slice(*first), slice(*second)
                corner = [0, 0, 0]
                corner[a], corner[b] = first[0], second[0]
                restorer(logits[:, *box], (corner[0], corner[1], corner[2]))
        restorer.finish()
        assert len(np.unique(whole)) > 3
        np.testing.assert_array_equal(sink.array, whole)


@pytest.mark.parametrize("activation", ["softmax", "regions"])
def test_interpolating_only_where_neighbours_differ_changes_nothing(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = smooth(9, (3, 20, 24))
    rows, columns = Line.between(20, 43), Line.between(24, 31)
    picks = [line.picks(slice(0, len(line)), 0, CPU) for line in (rows, columns)]
    monkeypatch.setattr(winners_module, "_DENSE_SHARE", 2.0)
    some = labels_between(logits, picks[0], picks[1], activation=activation)  # type: ignore[arg-type]
    monkeypatch.setattr(winners_module, "_DENSE_CLASSES", 99)
    every = labels_between(logits, picks[0], picks[1], activation=activation)  # type: ignore[arg-type]
    full = interpolate(logits[None], size=(3, 43, 31), mode="trilinear")[0]
    assert (some != every).float().mean() < 1e-4
    assert (winners(full, activation) != every).float().mean() < 1e-4  # type: ignore[arg-type]


def test_winners_by_hand() -> None:
    logits = torch.tensor([[1.0, -1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 3.0, -1.0]])
    assert winners(logits, "softmax").tolist() == [0, 2, 0]
    # The later region that is above 0 covers the earlier; exactly 0 is not above it.
    assert winners(logits, "regions").tolist() == [2, 3, 0]
    assert class_dtype(256) == np.uint8
    assert class_dtype(257) == np.uint16


def test_many_classes_need_16_bits() -> None:
    record = RestoreRecord.of(Geometry((4, 6, 5), np.eye(4)), (2.0, 2.0, None))
    logits = torch.zeros(300, *record.working.shape)
    logits[299] = 1
    found = restore_classes(logits, record)
    assert found.dtype == np.uint16
    assert (found == 299).all()


def test_outlets_get_the_restored_logits() -> None:
    record = RestoreRecord.of(Geometry((9, 8, 7), np.diag([-1.0, 1, 1, 1])), (2.0, 1.5, 1.0))
    logits = smooth(3, record.working.shape)
    labels, first = ArraySink((9, 8, 7), np.uint8), ArraySink((9, 8, 7), np.float32)
    outlet = Outlet(lambda values: [values[2]], [first])
    restorer = Restorer(record, (1, 2, 0), labels, classes=2, outlet=outlet)
    restorer(logits, (0, 0, 0))
    restorer.finish()
    full = interpolate(logits[None], size=record.oriented.shape, mode="trilinear")[0]
    back = record.orientation.inverse()
    np.testing.assert_allclose(first.array, back.apply(full[2].numpy()), atol=1e-5)
    np.testing.assert_array_equal(labels.array, back.apply(full[:2].argmax(0).numpy()))
