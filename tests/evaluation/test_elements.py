"""Sizes of surface elements by hand, and the whole table against surface-distance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from surface_distance import lookup_tables

from medseg.evaluation.elements import element_sizes

SPACING_MM = (0.83, 1.37, 2.91)


def _code(*corners: tuple[int, ...]) -> int:
    return sum(1 << sum(c << axis for axis, c in enumerate(corner)) for corner in corners)


def test_by_hand() -> None:
    sizes = element_sizes((2.0, 3.0, 4.0))
    # One corner inside: the triangle through the middles of its edges, half the cross
    # product of (-1, 1.5, 0) and (-1, 0, 2).
    normal = np.cross([-1.0, 1.5, 0.0], [-1.0, 0.0, 2.0])
    assert sizes[_code((0, 0, 0))] == pytest.approx(np.linalg.norm(normal) / 2)
    # A whole face inside: a flat piece across the cell.
    assert sizes[_code((0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1))] == pytest.approx(12.0)
    assert sizes[0] == sizes[255] == 0.0
    lines = element_sizes((3.0, 4.0))
    assert lines[_code((0, 0))] == pytest.approx(2.5)
    assert lines[_code((0, 0), (0, 1))] == 4.0
    assert lines[_code((0, 0), (1, 0))] == 3.0
    assert lines[_code((0, 0), (1, 1))] == pytest.approx(5.0)


def test_volumes_against_surface_distance() -> None:
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(SPACING_MM)
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    corners = list(product((0, 1), repeat=3))
    for code in range(256):
        # Their table is looked up with a flipped kernel.
        other = sum(kernel[c] for c in corners if code >> (c[0] + 2 * c[1] + 4 * c[2]) & 1)
        assert element_sizes(SPACING_MM)[code] == pytest.approx(theirs[other], rel=1e-12)


def test_flat_images_against_surface_distance() -> None:
    theirs = lookup_tables.create_table_neighbour_code_to_contour_length(SPACING_MM[:2])
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL
    for code in range(16):
        corners = product((0, 1), repeat=2)
        other = sum(kernel[c] for c in corners if code >> (c[0] + 2 * c[1]) & 1)
        assert element_sizes(SPACING_MM[:2])[code] == pytest.approx(theirs[other], rel=1e-12)
