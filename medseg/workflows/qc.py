"""Trust in a mask: judged by the profile of its model, noted with the mask."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from medseg.core.profile import Profile
from medseg.core.results import Prediction

_log = logging.getLogger(__name__)


def noted(
    provenance: Mapping[str, Any] | None, warnings: Sequence[str], source: str
) -> dict[str, Any]:
    """Provenance with warnings about a mask in it; they are logged, too."""
    for warning in warnings:
        _log.warning("%s: %s", source, warning)
    return {**(provenance or {}), **({"warnings": list(warnings)} if warnings else {})}


def judged(
    prediction: Prediction, profile: Profile | None, voxels: NDArray[Any] | None = None
) -> Prediction:
    """The same mask, whose provenance says under ``qc`` how far it can be trusted and why.

    Args:
        prediction: Its provenance may hold ``confidence``, as a run of the network notes it.
        profile: Of the model; without one only the network's confidence counts.
        voxels: (C, I, J, K) intensities on the mask's grid.
    """
    # They take a while to load, and few predictions need them.
    from medseg.quality.deviations import sureness_from
    from medseg.quality.features import Scale, look_at_case
    from medseg.quality.score import judge

    facts = prediction.provenance
    known = facts.get("confidence", {})
    sureness = {n: one for n, one in sureness_from(known).items() if n in _names(prediction)}
    if profile is None:
        labels = {name: {"trust": one.dice} for name, one in sureness.items()}
        trust = min((one.dice for one in sureness.values()), default=0.0)
        found: dict[str, Any] = {"trust": trust, "reasons": [], "labels": labels}
    else:
        kept = {n: one for n, one in profile.labels.items() if n in _names(prediction)}
        look = look_at_case(
            prediction.labels, prediction.geometry, prediction.label_set, voxels=voxels,
            scale=Scale(profile.absolute),
        )  # fmt: skip
        found = judge(look, profile.model_copy(update={"labels": kept}), sureness).to_json()
    found["reasons"] += facts.get("warnings", [])
    return replace(prediction, provenance={**facts, "qc": found})


def _names(prediction: Prediction) -> tuple[str, ...]:
    return prediction.label_set.names


def by_trust(provenances: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Trust and reasons of each case that was judged, the least trusted first.

    Args:
        provenances: Of each case.
    """
    found = {
        case: {key: facts["qc"][key] for key in ("trust", "reasons")}
        for case, facts in provenances.items()
        if "qc" in facts
    }
    return dict(sorted(found.items(), key=lambda item: (item[1]["trust"], item[0])))
