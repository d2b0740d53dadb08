"""The chain that a plan names, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.errors import LabelError
from medseg.core.labels import LabelSet
from medseg.core.plan import PostprocessStep
from medseg.postprocess.chain import apply_chain

LABELS = LabelSet.from_names({3: "liver", 7: "spleen"})
ROW = np.array([3, 3, 0, 3, 7, 0, 7, 7], dtype=np.uint8).reshape(8, 1, 1)


def _row(*steps: PostprocessStep) -> list[int]:
    return [int(value) for value in apply_chain(ROW, steps, LABELS).ravel()]


def test_only_the_named_label_is_cleaned() -> None:
    assert _row(PostprocessStep(step="largest", label="liver")) == [3, 3, 0, 0, 7, 0, 7, 7]
    assert _row(PostprocessStep(step="largest", label="spleen")) == [3, 3, 0, 3, 0, 0, 7, 7]


def test_steps_follow_each_other() -> None:
    steps = (
        PostprocessStep(step="largest", label="liver"),
        PostprocessStep(step="largest", label="spleen", connectivity=6),
    )
    assert _row(*steps) == [3, 3, 0, 0, 0, 0, 7, 7]
    assert _row(*(step.model_copy(update={"connectivity": 26}) for step in steps)) == _row(*steps)


def test_no_step_gives_the_mask_itself() -> None:
    assert apply_chain(ROW, (), LABELS) is ROW


def test_unknown_label() -> None:
    with pytest.raises(LabelError, match=r"'lung'.*liver, spleen"):
        _row(PostprocessStep(step="largest", label="lung"))
