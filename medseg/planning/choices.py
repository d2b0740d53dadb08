"""Single decisions of a plan, each with its reason: grid, normalisation, variation, dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from medseg.core.augmentation_plan import AugmentationPlan
from medseg.core.errors import SettingsError
from medseg.core.plan import ChannelFacts, ChannelPlan, Fingerprint, Spacing, Triple
from medseg.core.settings import CONFIGURATIONS
from medseg.planning.fingerprint import ANISOTROPIC

# A patch that shows less of a scan than this lacks context; a coarser grid is then worth a look
# (nnU-Net's rule, Isensee et al., Nature Methods 18, 2021).
SEEN_ENOUGH = 0.25
# With fewer slices than this there is hardly a third dimension to pool.
_FEW_SLICES = 6


@dataclass(frozen=True)
class Dimensions:
    """Which of 2D, 3D and coarse 3D was taken, and why the others were not.

    Attributes:
        taken: ``"2d"``, ``"3d"`` or ``"3d-low"``.
        reasons: By ``configuration`` and by the name of each that was not taken.
    """

    taken: str
    reasons: dict[str, str]


def choose_dimensions(fingerprint: Fingerprint, asked: str, *, seen: float) -> Dimensions:
    """Choose among 2D, 3D and coarse 3D.

    Args:
        fingerprint: Of the training cases.
        asked: One of ``settings.CONFIGURATIONS``; ``auto`` decides.
        seen: Share of a typical scan that a 3D patch on the finest grid shows.

    Raises:
        SettingsError: There is no such configuration, or single slices are to be 3D.
    """
    if asked not in CONFIGURATIONS:
        raise SettingsError("--configuration", expected=", ".join(CONFIGURATIONS), got=asked)
    flat = fingerprint.two_dimensional
    if flat and asked.startswith("3d"):
        raise SettingsError(
            "--configuration", expected="2d: the images are single slices", got=asked
        )
    steps = sorted(fingerprint.median_spacing_mm)
    thick, slices = steps[2] / steps[0], min(fingerprint.median_shape)
    about = {
        "2d": f"slices are {thick:.1f} times as thick as pixels are wide, {slices} of them",
        "3d": f"a patch shows {100 * seen:.0f} % of a typical scan",
        "3d-low": f"a finer patch shows {100 * seen:.0f} % of a typical scan",
    }
    if flat:
        return Dimensions("2d", {"configuration": "2d: the images are single slices"})
    if asked != "auto":
        taken, why = asked, "as asked for"
    elif takes_single_slices(fingerprint, asked):
        alone = slices == 1
        why = "a scan has one slice" if alone else "neighbouring slices hardly belong together"
        taken = "2d"
    else:
        taken, why = "3d", "neighbouring slices tell what one alone does not"
    reasons = {"configuration": f"{taken}: {why}; {about[taken]}"}
    low = "context is enough" if seen >= SEEN_ENOUGH else "try it where organs are large"
    against = {
        "2d": "3D sees the slices around",
        "3d": "2D was taken",
        "3d-low": f"{low}; fine structures would be lost",
    }
    for name in ("2d", "3d", "3d-low"):
        if name != taken:
            reasons[f"not_{name}"] = f"{about[name]}: {against[name]}"
    reasons["not_cascade"] = (
        "a coarse network before a fine one pays where a patch shows little of a scan; "
        + ("here it shows enough" if seen >= SEEN_ENOUGH else "see --configuration cascade")
    )
    return Dimensions(taken, reasons)


def takes_single_slices(fingerprint: Fingerprint, asked: str) -> bool:
    """Whether the network will see single slices."""
    if asked != "auto" or fingerprint.two_dimensional:
        return asked == "2d" or fingerprint.two_dimensional
    if min(fingerprint.median_shape) == 1:
        return True
    steps = sorted(fingerprint.median_spacing_mm)
    return steps[2] > ANISOTROPIC * steps[0] and min(fingerprint.median_shape) < _FEW_SLICES


def sensible(fingerprint: Fingerprint, *, seen: float) -> tuple[str, ...]:
    """The configurations that are worth comparing.

    Args:
        fingerprint: Of the training cases.
        seen: As for :func:`choose_dimensions`.
    """
    if fingerprint.two_dimensional or min(fingerprint.median_shape) == 1:
        return ("2d",)
    return ("2d", "3d") if seen >= SEEN_ENOUGH else ("2d", "3d", "3d-low")


def choose_axis_order(fingerprint: Fingerprint, taken: str) -> Triple:
    """The RAS axis of each working axis: for single slices the one across them comes last.

    That is an axis of a single voxel where there is one, else the coarsest.
    """
    if taken != "2d" or fingerprint.two_dimensional:
        return 0, 1, 2
    shape, steps = fingerprint.median_shape, fingerprint.median_spacing_mm
    coarse = max(range(3), key=lambda axis: (shape[axis] == 1, steps[axis], axis))
    first, second = (axis for axis in range(3) if axis != coarse)
    return first, second, coarse


def coarsening_for(shape: Triple, patch: Triple) -> float:
    """By which factor a grid must get coarser so that the patch shows enough of the scan."""
    seen = prod(patch) / prod(shape)
    return float(max(1.0, (SEEN_ENOUGH / seen) ** (1 / 3)))


def choose_augmentation(fingerprint: Fingerprint) -> tuple[AugmentationPlan, str]:
    """Steps by modality, mirroring left out, and why."""
    usual = AugmentationPlan()
    modalities = {facts.modality.upper() for facts in fingerprint.channels}
    if not modalities & {"MR", "MRI"}:
        return usual, "rotation, scaling, noise, blur, brightness, contrast, resolution, gamma"
    more = {
        name: getattr(usual, name).model_copy(update={"probability": probability})
        for name, probability in (
            ("bias_field", 0.2), ("ghosting", 0.05), ("motion", 0.05), ("spike", 0.05),
        )
    }  # fmt: skip
    return (
        usual.model_copy(update=more),
        "as for CT, and what MR scanners add: bias fields, now and then ghosts, motion, spikes",
    )


def choose_spacing(fingerprint: Fingerprint, coarsening: float) -> tuple[Spacing, str]:
    """Working grid in mm, and why: the median, but for a coarse axis.

    Args:
        fingerprint: Of the training cases.
        coarsening: Factor by which the grid gets coarser.
    """
    median, low = fingerprint.median_spacing_mm, fingerprint.low_spacing_mm
    slower = f"; {coarsening:g} times coarser, so that enough steps fit" if coarsening > 1 else ""
    if fingerprint.two_dimensional:
        reason = f"median of the training images; single slices{slower}"
        return (median[0] * coarsening, median[1] * coarsening, None), reason
    chosen = [
        fine if middle > ANISOTROPIC * min(median) else middle
        for middle, fine in zip(median, low, strict=True)
    ]
    reason = "median of the training scans"
    if chosen != list(median):
        reason += "; 10th percentile along the coarse axis"
    if coarsening > 1:
        # Axes that are coarse already stay as they are for longest.
        chosen = [max(side, coarsening * min(chosen)) for side in chosen]
    return (chosen[0], chosen[1], chosen[2]), reason + slower


def choose_normalisation(facts: ChannelFacts) -> ChannelPlan:
    """CT by the training foreground, everything else by each scan."""
    if facts.modality.upper() == "CT":
        return ChannelPlan(
            name=facts.name,
            normalisation="ct",
            clip_low=facts.percentile_00_5,
            clip_high=facts.percentile_99_5,
            mean=facts.foreground_mean,
            std=facts.foreground_std,
        )
    # A quarter of exact zeros is a background that someone cut away (skull stripping).
    masked = facts.zero_share > 0.25
    return ChannelPlan(name=facts.name, normalisation="zscore_nonzero" if masked else "zscore")
