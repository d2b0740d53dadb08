"""Which plane of a mask shows which slice of an uneven series."""

from __future__ import annotations

from typing import Any

from medseg.core.slices import SlicePlaces


def slice_table(slices: SlicePlaces) -> dict[str, Any]:
    """Which plane of a mask shows which slice, by its position, for scripts to find its file."""
    note = "" if slices.even else (
        "The slices lie at uneven distances, which no affine can say: the header has the nearest "
        "even grid. Take the position of each plane from here."
    )  # fmt: skip
    pairs = zip(slices.along_mm, slices.positions_mm, strict=True)
    return {
        "even": slices.even,
        "header_error_mm": round(slices.header_error_mm, 4),
        **({"note": note} if note else {}),
        "planes": [
            {
                "index": index,
                "position_mm": round(along, 4),
                "image_position_patient_mm": [round(value, 4) for value in position],
            }
            for index, (along, position) in enumerate(pairs)
        ],
    }
