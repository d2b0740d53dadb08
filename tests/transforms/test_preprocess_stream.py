"""Slab by slab and as a whole: the same preprocessed scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medseg.core.errors import FileError, InputError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.plan import edited
from medseg.core.scan import Scan
from medseg.io.formats import read_scan
from medseg.transforms import planes, preprocess_stream
from medseg.transforms.preprocess import preprocess_scan
from medseg.transforms.preprocess_stream import (
    Moments,
    stream_preprocessed,
    survey_scan,
    why_not_streamed,
)
from tests.models import small_plan
from tests.phantoms import lopsided_geometry, oblique_affine

CT = {"normalisation": "ct", "clip_low": -50.0, "clip_high": 150.0, "mean": 30.0, "std": 40.0}


class Sink:
    """Takes planes into a tensor; each only once."""

    def __init__(self, shape: tuple[int, int, int, int], axis: int) -> None:
        self.voxels, self.axis = torch.full(shape, torch.nan), axis + 1

    def write(self, start: int, planes: Tensor) -> None:
        place = self.voxels.narrow(self.axis, start, planes.shape[self.axis])
        assert bool(place.isnan().all())
        place.copy_(planes)


def streamed(scan: Scan, plan: Any) -> tuple[Tensor, Any]:
    survey = survey_scan(scan, plan)
    sink = Sink(survey.shape, survey.axis)
    stream_preprocessed(scan, plan, survey, sink)
    return sink.voxels, survey.record


def plan_of(kinds: list[str], **changes: Any) -> Any:
    names = ("first", "second", "third")
    channels = [
        {"name": name, **(CT if kind == "ct" else {"normalisation": kind})}
        for name, kind in zip(names, kinds, strict=False)
    ]
    return edited(small_plan(channels=len(kinds)), {"channels": channels, **changes})


KINDS = ("ct", "zscore", "zscore_nonzero", "rescale_01", "none")
SIDES = st.sampled_from([None, 0.7, 1.5, 2.0, 3.1, 9.0])
# Linear, nearest, what leaves the coarsest axis to itself, and cubic along all axes.
RESAMPLING = (
    {},
    {"order": 0},
    {"order": 3, "coarse_order": 0, "separate": "always"},
    {"order": 3, "coarse_order": 1, "separate": "auto"},
    {"order": 1, "coarse_order": 0, "separate": "always"},
    {"order": 3},
    {"order": 3, "coarse_order": 3, "separate": "always"},
    {"order": 1, "coarse_order": 3, "separate": "always"},
)


@given(data=st.data())
def test_equal_to_the_whole_scan(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(2, 14)] * 3))
    turn = data.draw(st.sampled_from(ALL_ORIENTATIONS))
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    image = data.draw(st.sampled_from(RESAMPLING))
    plan = plan_of(
        kinds,
        spacing_mm=data.draw(st.tuples(SIDES, SIDES, SIDES)),
        crop=data.draw(st.sampled_from(["none", "nonzero"])),
        orientation=data.draw(st.sampled_from(["ras", "stored"])),
        axis_order=tuple(data.draw(st.permutations(range(3)))),
        **{f"resampling.image.{key}": value for key, value in image.items()},
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    voxels = rng.normal(40, 60, (len(kinds), *shape)).round().astype(np.int16)
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
    inside = np.zeros(shape, np.int16)
    inside[tuple(slice(*pair) for pair in ends)] = 1
    geometry = lopsided_geometry(shape).reoriented(turn).with_shape(shape)
    scan = Scan.from_array(voxels * inside, geometry)
    assert why_not_streamed(scan, plan) == ""
    with pytest.MonkeyPatch.context() as patch:
        plane = len(kinds) * shape[0] * shape[1]
        patch.setattr(preprocess_stream, "_SLAB_VOXELS", plane * data.draw(st.integers(1, 5)))
        seen, record = streamed(scan, plan)
    expected, whole = preprocess_scan(scan, plan)
    assert (record.working, record.orientation, record.crop, record.nearest) == (
        whole.working, whole.orientation, whole.crop, whole.nearest
    )  # fmt: skip
    torch.testing.assert_close(seen, expected, atol=1e-5 * float(expected.abs().max() + 1), rtol=0)


@pytest.mark.parametrize("turn", ALL_ORIENTATIONS[::7])
def test_equal_from_a_file(tmp_path: Path, turn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess_stream, "_SLAB_VOXELS", 1)
    voxels = np.random.default_rng(0).integers(-900, 900, (12, 9, 7)).astype(np.int16)
    geometry = Geometry((12, 9, 7), oblique_affine()).reoriented(turn)
    nib.save(nib.Nifti1Image(turn.apply(voxels), geometry.affine_ras), tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    plan = plan_of(["zscore"], spacing_mm=(1.1, 2.7, 1.9))
    seen, _ = streamed(scan, plan)
    torch.testing.assert_close(seen, preprocess_scan(scan, plan)[0], atol=1e-5, rtol=1e-5)


def test_moments_are_numpys() -> None:
    values = np.random.default_rng(1).normal(1e4, 3.0, 5000).astype(np.float32)
    moments = Moments()
    for part in np.split(values, [1, 1, 700, 4321]):
        moments = moments.joined(torch.from_numpy(part))
    exact = values.astype(np.float64)
    assert moments.count == 5000
    assert moments.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert moments.std == pytest.approx(exact.std(), rel=1e-9)
    assert (moments.low, moments.high) == (values.min(), values.max())


def test_what_cannot_be_streamed_is_said() -> None:
    sheared = np.array(oblique_affine())
    sheared[:3, 2] += 0.6 * sheared[:3, 0]
    scan = Scan.from_array(np.zeros((9, 8, 7)), Geometry((9, 8, 7), sheared))
    assert "right angles" in why_not_streamed(scan, small_plan())
    with pytest.raises(InputError, match=r"right angles.*Allow more memory"):
        survey_scan(scan, small_plan())
    regular = Scan.from_array(np.zeros((9, 8, 7)), lopsided_geometry((9, 8, 7)))
    assert why_not_streamed(regular, small_plan()) == ""
    with pytest.raises(InputError, match="expected 2, got 1"):
        survey_scan(regular, small_plan(channels=2))


def test_splines_along_many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """More slices than a spline reaches: planes leave before all have come, in both directions."""
    monkeypatch.setattr(preprocess_stream, "_SLAB_VOXELS", 5 * 6 * 3)
    voxels = np.random.default_rng(3).normal(0, 100, (6, 5, 150)).astype(np.float32)
    plan = plan_of(
        ["zscore"],
        spacing_mm=(1.3, 0.9, 1.7),
        **{"resampling.image.order": 3, "orientation": "ras"},
    )
    through = planes.SplinePlanes.through
    for flip in (1.0, -1.0):
        affine = np.diag([1.0, 1.1, 1.2 * flip, 1.0])
        scan = Scan.from_array(voxels, Geometry(voxels.shape, affine))
        held: list[int] = []

        def watched(self: Any, start: int, slab: Tensor, held: list[int] = held) -> Any:
            yield from through(self, start, slab)
            held.append(0 if self._held is None else int(self._held[1].shape[0]))

        with monkeypatch.context() as patch:
            patch.setattr(planes.SplinePlanes, "through", watched)
            seen, _ = streamed(scan, plan)
        expected, _ = preprocess_scan(scan, plan)
        torch.testing.assert_close(seen, expected, atol=2e-6, rtol=0)
        assert len(held) == 50
        assert max(held) < 50


def test_voxels_that_are_no_numbers_are_refused() -> None:
    voxels = np.zeros((9, 8, 7), np.float32)
    voxels[3, 3, 5] = np.nan
    scan = Scan.from_array(voxels, lopsided_geometry((9, 8, 7)))
    with pytest.raises(FileError, match="1 that are NaN"):
        survey_scan(scan, small_plan())


def test_a_mask_with_holes_filled_cannot_be_streamed() -> None:
    scan = Scan.from_array(np.zeros((9, 8, 7)), lopsided_geometry((9, 8, 7)))
    assert "holes" in why_not_streamed(scan, plan_of(["zscore_mask"]))


def test_a_second_stage_cannot_be_streamed() -> None:
    scan = Scan.from_array(np.zeros((9, 8, 7)), lopsided_geometry((9, 8, 7)))
    network = small_plan().network.model_copy(update={"in_channels": 3}).model_dump()
    plan = edited(small_plan(), {"cascade_labels": 2, "network": network})
    assert "earlier stage" in why_not_streamed(scan, plan)
