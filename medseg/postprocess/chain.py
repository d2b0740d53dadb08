"""The steps that a plan names, applied in order to a finished mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from medseg.core.errors import InputError, LabelError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import PostprocessStep, describe
from medseg.core.postprocess_step import PostprocessChain
from medseg.postprocess.components import Structure, keep_largest, remove_small
from medseg.postprocess.places import keep_inside, keep_nearest
from medseg.postprocess.shapes import close_label, fill_holes, open_label
from medseg.postprocess.smoothing import majority, smooth_label

_ALONE = ("nearest", "inside")
_WITH_RADIUS = {
    "open": open_label, "close": close_label, "smooth": smooth_label, "majority": majority,
}  # fmt: skip


@dataclass(frozen=True)
class StepChange:
    """What steps of one kind did to a mask.

    Attributes:
        steps: As they are typed.
        removed_mm3: Volume that each label lost, by name; labels that lost none are left out.
        added_mm3: Volume that each label gained.
    """

    steps: tuple[str, ...]
    removed_mm3: dict[str, float]
    added_mm3: dict[str, float]


def parse_steps(
    text: str, labels: LabelSet, *, connectivity: int = 26
) -> tuple[PostprocessStep, ...]:
    """Read steps as they are typed: ``largest:liver; min-volume:lesion=50mm3; fill-holes:*``.

    ``*`` means each label by itself, ``a+b`` both as one structure.

    Args:
        text: Steps with ``;`` between them.
        labels: Of the masks; a label may be named by its value.
        connectivity: Of all steps.

    Raises:
        SettingsError: A step is unknown, or lacks what it needs.
        LabelError: A label is unknown.
    """
    found: list[PostprocessStep] = []
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        kind, _, rest = part.partition(":")
        names, _, value = rest.rpartition("=") if "=" in rest else (rest, "", "")
        structures = labels.names if names.strip() == "*" else [names]
        for structure in structures:
            first, *joined = _names_in(structure, labels)
            facts: dict[str, Any] = {"step": kind.strip(), "label": first, "joined": joined}
            try:
                facts |= _value(kind.strip(), value.strip(), labels)
                found.append(PostprocessStep(connectivity=connectivity, **facts))
            except ValidationError as error:
                raise SettingsError(
                    f"step '{part}'", expected="a step such as largest:liver",
                    got=describe(error),
                ) from error  # fmt: skip
    if not found:
        raise SettingsError("steps", expected="steps such as largest:liver", got=f"'{text}'")
    return tuple(found)


def chain_from_json(text: str, *, source: str) -> PostprocessChain:
    """Read steps from the JSON that :class:`PostprocessChain` is written as.

    Raises:
        SettingsError: It is no such JSON.
    """
    try:
        return PostprocessChain.model_validate_json(text)
    except ValidationError as error:
        raise SettingsError(
            source, expected="JSON with a list of 'steps'", got=describe(error),
            cure="Write it with `medseg postprocess PREDICTIONS --learn REFERENCES --out FILE`.",
        ) from error  # fmt: skip


def steps_for(chain: PostprocessChain, labels: LabelSet) -> tuple[PostprocessStep, ...]:
    """The steps of a chain for masks with these labels.

    Labels are the same where they have the same name; where a name is unknown, the value that
    the chain has for it counts.

    Raises:
        LabelError: A step is of a label that is known by neither.
    """
    values = {label.value: label.name for label in labels.labels}
    own = {} if chain.labels is None else {label.name: label for label in chain.labels.labels}
    names: dict[str, str] = {}
    for name in dict.fromkeys(name for step in chain.steps for name in step.names):
        try:
            names[name] = labels.named(name).name
        except LabelError:
            if name not in own or own[name].value not in values:
                raise
            names[name] = values[own[name].value]
    found = (step.renamed(names) for step in chain.steps)
    return tuple(step for step in found if step is not None)


def values_named(text: str) -> tuple[int, ...]:
    """The labels that steps, as they are typed, name by their values: a mask may lack some."""
    found: set[int] = set()
    for part in text.split(";"):
        kind, _, rest = part.partition(":")
        names, _, value = rest.partition("=")
        if kind.strip() in _ALONE:
            names = f"{names}+{value}"
        found |= {int(name) for name in map(str.strip, names.split("+")) if name.isdecimal()}
    return tuple(sorted(found))


def _names_in(text: str, labels: LabelSet) -> list[str]:
    text = text.strip()
    if text in labels.names:
        return [text]
    values = {str(label.value): label.name for label in labels.labels}
    return [values.get(name) or labels.named(name).name for name in map(str.strip, text.split("+"))]


def _value(kind: str, value: str, labels: LabelSet) -> dict[str, Any]:
    """The field that the text behind ``=`` stands for."""
    if not value:
        return {}
    if kind == "inside" or (kind == "nearest" and value.count(",") != 2):
        return {"other": _names_in(value, labels)[0]}
    if kind == "nearest":
        return {"point_mm": [part.strip() for part in value.split(",")]}
    if kind == "largest":
        return {"count": value}
    if kind == "min-volume":
        return {"volume_mm3": value.removesuffix("mm3").strip()}
    return {"radius_mm": value.removesuffix("mm").strip()}


def apply_chain(
    mask: NDArray[Any],
    steps: tuple[PostprocessStep, ...],
    labels: LabelSet,
    *,
    geometry: Geometry | None = None,
) -> NDArray[Any]:
    """Apply post-processing steps to a mask.

    Neighbouring steps of one kind and connectivity touch different labels, so they run as
    one pass over the mask.

    Args:
        mask: (I, J, K) mask values (not class indices). Not changed.
        steps: What to do, in order. Labels are named as in ``labels``.
        labels: What the values mean.
        geometry: Where the voxels lie; steps that are told mm need it.

    Returns:
        The new mask; the given one itself when there is no step.

    Raises:
        LabelError: A step names a label that is not in the set.
        InputError: The mask is not (I, J, K) integers, or a step lacks the geometry.
    """
    for group in _groups(steps):
        mask = _applied(mask, group, labels, geometry)
    return mask


def apply_with_changes(
    mask: NDArray[Any], steps: tuple[PostprocessStep, ...], labels: LabelSet, geometry: Geometry
) -> tuple[NDArray[Any], list[StepChange]]:
    """As :func:`apply_chain`, and what each step did."""
    changes = []
    for group in _groups(steps):
        after = _applied(mask, group, labels, geometry)
        changed = mask != after
        lost, gained = mask[changed], after[changed]
        volume = geometry.voxel_volume_mm3
        changes.append(
            StepChange(
                tuple(step.text for step in group),
                *(
                    {
                        label.name: round(float(n) * volume, 3)
                        for label in labels.labels
                        if (n := np.count_nonzero(side == label.value))
                    }
                    for side in (lost, gained)
                ),
            )
        )
        mask = after
    return mask, changes


def _groups(steps: Sequence[PostprocessStep]) -> Iterator[list[PostprocessStep]]:
    """Neighbouring steps that differ in their labels alone, each label once."""

    def same(step: PostprocessStep) -> tuple[object, ...]:
        return (step.step, step.connectivity, step.count, step.radius_mm)

    for _, run in groupby(steps, key=same):
        group: list[PostprocessStep] = []
        for step in run:
            met = {name for other in group for name in other.structure}
            if group and (step.step in _ALONE or met & set(step.structure)):
                yield group
                group = []
            group.append(step)
        yield group


def _applied(
    mask: NDArray[Any], group: list[PostprocessStep], labels: LabelSet, geometry: Geometry | None
) -> NDArray[Any]:
    step, connectivity = group[0], group[0].connectivity
    structures: list[Structure] = [
        tuple(labels.named(name).value for name in each.structure) for each in group
    ]
    values = [labels.named(each.label).value for each in group]
    if step.step == "largest":
        return keep_largest(mask, structures, connectivity=connectivity, count=step.count)
    if step.step == "inside":
        other = labels.named(step.other).value
        return keep_inside(mask, structures[0], other=other, connectivity=connectivity)
    if step.step == "fill-holes":
        return fill_holes(mask, values)
    if geometry is None:
        raise InputError(
            f"post-processing step '{step.text}'", expected="the geometry of the mask", got="none"
        )
    return _applied_in_mm(mask, group, structures, geometry, labels)


def _applied_in_mm(
    mask: NDArray[Any],
    group: list[PostprocessStep],
    structures: list[Structure],
    geometry: Geometry,
    labels: LabelSet,
) -> NDArray[Any]:
    step = group[0]
    values = [labels.named(each.label).value for each in group]
    if step.step == "fill-holes-slices":
        return fill_holes(mask, values, slice_axis=geometry.orientation_to_ras().axes[2])
    if step.step == "min-volume":
        return remove_small(
            mask, structures, volume_mm3=[each.volume_mm3 or 0.0 for each in group],
            voxel_mm3=geometry.voxel_volume_mm3, connectivity=step.connectivity,
        )  # fmt: skip
    if step.step == "nearest":
        other = labels.named(step.other).value if step.other else None
        return keep_nearest(
            mask, structures[0], geometry=geometry, point_mm=step.point_mm, other=other,
            connectivity=step.connectivity,
        )  # fmt: skip
    change = _WITH_RADIUS[step.step]
    return change(mask, values, radius_mm=step.radius_mm or 0.0, spacing_mm=geometry.spacing_mm)
