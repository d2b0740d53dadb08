"""A made-up fingerprint for tests of planning."""

from __future__ import annotations

from typing import Any

from medseg.core.labels import LabelSet
from medseg.core.plan import ChannelFacts, Fingerprint

LABELS = LabelSet.from_names({1: "liver", 2: "kidney_left", 3: "kidney_right"})


def fingerprint(**changes: Any) -> Fingerprint:
    facts = ChannelFacts(
        name="CT", modality="CT", foreground_mean=50.0, foreground_std=20.0,
        percentile_00_5=-100.0, percentile_99_5=200.0, zero_share=0.0,
    )  # fmt: skip
    base = Fingerprint(
        cases=10,
        two_dimensional=False,
        median_spacing_mm=(1.0, 1.0, 1.0),
        low_spacing_mm=(1.0, 1.0, 1.0),
        median_shape=(36, 50, 35),
        max_shape=(43, 59, 47),
        channels=(facts,),
        label_voxel_share=dict.fromkeys(LABELS.names, 0.1),
        label_cases=dict.fromkeys(LABELS.names, 10),
    )
    return base.model_copy(update=changes)
