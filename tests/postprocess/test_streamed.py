"""By slab and as a whole: the same mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from medseg.core.errors import InputError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import PostprocessStep
from medseg.io.scratch import ScratchArray
from medseg.postprocess.chain import apply_chain
from medseg.postprocess.components import keep_largest, remove_small
from medseg.postprocess.shapes import fill_holes
from medseg.postprocess.streamed import (
    apply_chain_by_slab,
    fill_holes_by_slab,
    keep_largest_by_slab,
    remove_small_by_slab,
    works_by_slab,
)
from tests.phantoms import oblique_affine

SHAPE = (7, 5, 9)


def on_disk(folder: Path, mask: NDArray[np.uint8], order: tuple[int, ...]) -> ScratchArray:
    array = ScratchArray(folder, mask.shape, mask.dtype, order=order)
    array.write((slice(None),) * 3, mask)
    return array


def whole(array: ScratchArray) -> NDArray[np.uint8]:
    return array.read((slice(None),) * 3)


@given(data=st.data())
def test_equal_to_the_whole_mask(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    # Thin, so that there are many small regions, ties, and bridges over seams.
    share = data.draw(st.sampled_from([0.15, 0.35, 0.6]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = (rng.random(shape) < share).astype(np.uint8) * rng.choice([1, 2, 7], shape)
    mask = mask.astype(data.draw(st.sampled_from([np.uint8, np.uint16])))
    connectivity = data.draw(st.sampled_from([6, 18, 26]))
    values = data.draw(st.sampled_from([[1], [1, 2], [1, 2, 7], [7, 9]]))
    order = data.draw(st.permutations(range(3)))
    with on_disk(tmp_path_factory.getbasetemp(), mask, order) as array:
        depth = data.draw(st.integers(1, 4))
        keep_largest_by_slab(array, values, connectivity=connectivity, depth=depth)
        expected = keep_largest(mask, values, connectivity=connectivity)
        assert np.array_equal(whole(array), expected)


@given(data=st.data())
def test_small_regions_and_holes_as_in_the_whole_mask(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    # Dense for holes, thin for regions.
    share = data.draw(st.sampled_from([0.2, 0.5, 0.75, 0.9]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = (rng.random(shape) < share).astype(np.uint8) * rng.choice(
        [1, 2, 7], shape, p=[0.7, 0.2, 0.1]
    ).astype(np.uint8)
    order, depth = data.draw(st.permutations(range(3))), data.draw(st.integers(1, 4))
    connectivity = data.draw(st.sampled_from([6, 18, 26]))
    with on_disk(tmp_path_factory.getbasetemp(), mask, order) as array:
        fill_holes_by_slab(array, [1, 7], depth=depth)
        filled = fill_holes(mask, [1, 7])
        assert np.array_equal(whole(array), filled)
        least = {1: 3.0, 7: 2.0}
        remove_small_by_slab(array, least, connectivity=connectivity, depth=depth)
        expected = remove_small(
            filled, [1, 7], volume_mm3=[1.5, 1.0], voxel_mm3=0.5, connectivity=connectivity
        )
        assert np.array_equal(whole(array), expected)


@pytest.mark.parametrize(("connectivity", "kind"), [(6, 1), (18, 2), (26, 3)])
def test_equal_to_scipy(tmp_path: Path, connectivity: int, kind: int) -> None:
    mask = (np.random.default_rng(3).random((23, 17, 31)) < 0.3).astype(np.uint8)
    numbered, _ = ndimage.label(mask, ndimage.generate_binary_structure(3, kind))
    sizes = np.bincount(numbered.ravel())[1:]
    assert (sizes == sizes.max()).sum() == 1
    with on_disk(tmp_path, mask, (2, 1, 0)) as array:
        keep_largest_by_slab(array, [1], connectivity=connectivity, depth=5)
        assert np.array_equal(whole(array), numbered == 1 + sizes.argmax())


def test_a_corner_over_a_seam_joins_with_26_alone(tmp_path: Path) -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1, 1, :2], mask[2, 2, 2:], mask[0, 3, 0] = 1, 1, 1
    for connectivity, left in ((26, 4), (18, 2), (6, 2)):
        with on_disk(tmp_path, mask, (2, 0, 1)) as array:
            keep_largest_by_slab(array, [1], connectivity=connectivity, depth=2)
            assert whole(array).sum() == left
            assert whole(array)[1, 1].sum() == 2  # of equals the first stays


def test_a_chain(tmp_path: Path) -> None:
    labels = LabelSet.from_names({1: "low", 2: "high", 7: "other"})
    steps = (
        PostprocessStep(step="largest", label="low", connectivity=6),
        PostprocessStep(step="largest", label="other", connectivity=6),
        PostprocessStep(step="min-volume", label="high", volume_mm3=30.0),
        PostprocessStep(step="min-volume", label="other", volume_mm3=20.0),
        PostprocessStep(step="fill-holes", label="low"),
        PostprocessStep(step="largest", label="high"),
    )
    mask = np.random.default_rng(5).choice([0, 1, 2, 7], SHAPE).astype(np.uint8)
    geometry = Geometry(SHAPE, oblique_affine())
    with on_disk(tmp_path, mask, (2, 1, 0)) as array:
        apply_chain_by_slab(array, steps, labels, voxel_mm3=geometry.voxel_volume_mm3)
        expected = apply_chain(mask, steps, labels, geometry=geometry)
        assert np.array_equal(whole(array), expected)
        with pytest.raises(InputError, match="volume of a voxel"):
            apply_chain_by_slab(array, steps, labels)


def test_no_region_at_all(tmp_path: Path) -> None:
    with on_disk(tmp_path, np.zeros(SHAPE, np.uint8), (2, 1, 0)) as array:
        keep_largest_by_slab(array, [1, 2], depth=2)
        assert not whole(array).any()


def test_an_unknown_connectivity_is_refused(tmp_path: Path) -> None:
    with (
        on_disk(tmp_path, np.ones(SHAPE, np.uint8), (2, 1, 0)) as array,
        pytest.raises(InputError, match="6, 18 or 26"),
    ):
        keep_largest_by_slab(array, [1], connectivity=4)


def test_other_steps_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    labels = LabelSet.from_names({1: "low"})
    plain = PostprocessStep(step="largest", label="low", connectivity=6, evidence="Dice 0.9")
    other = plain.model_copy(update={"step": "smooth"})
    assert works_by_slab(plain)
    assert not works_by_slab(other)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 1, 1] = mask[5, 3, 3] = 1
    with on_disk(tmp_path, mask, (2, 1, 0)) as array:
        with pytest.raises(InputError, match="'smooth' of 'low'"):
            apply_chain_by_slab(array, (plain, other), labels)
        assert np.array_equal(whole(array), mask)
