"""``plans.json`` and ``dataset.json`` of nnU-Net v2 as a plan of ours.

Names of classes and functions are looked up in tables; nothing is imported by name. What
stands in no table is refused, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from medseg.core.errors import LabelError, PackageError
from medseg.core.labels import Label, LabelSet, palette_colour
from medseg.core.plan import (
    AxisResampling,
    ChannelPlan,
    InferencePlan,
    Normalisation,
    Plan,
    ResamplingPlan,
    TrainingPlan,
    describe,
)
from medseg.package.nnunet_network import network_plan, refuse

Json = Mapping[str, Any]
# Whether the reader turns the scan to RAS+ first. All give arrays as (k, j, i).
_READERS = {
    "SimpleITKIO": False,
    "SimpleITKIOWithReorient": True,
    "NibabelIO": False,
    "NibabelIOWithReorient": True,
    "NaturalImage2DIO": False,
    "Tiff3DIO": False,
}
_SCHEMES: dict[str, Normalisation] = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_01",
    "RGBTo01Normalization": "rgb_01",
}
_MODALITIES = {"ct": "CT", "mr": "MR", "mri": "MR"}


def configuration_named(plans: Json, name: str, *, source: str) -> dict[str, Any]:
    """One configuration with what it inherits.

    Raises:
        PackageError: There is none of that name, or it inherits from itself.
    """
    every = plans.get("configurations")
    if not isinstance(every, Mapping):
        raise PackageError(
            source, expected="plans of nnU-Net v2", got="plans without 'configurations'"
        )
    chain: list[Json] = []
    seen: list[str] = []
    while True:
        if name in seen or not isinstance(every.get(name), Mapping):
            what = "a circle of" if name in seen else "no such"
            raise PackageError(source, expected=f"a configuration '{name}'", got=what)
        seen.append(name)
        chain.append(every[name])
        if "inherits_from" not in every[name]:
            break
        name = str(every[name]["inherits_from"])
    merged: dict[str, Any] = {}
    for part in reversed(chain):
        merged.update(part)
    return merged


def plan_of(
    plans: Json,
    dataset: Json,
    configuration: str,
    *,
    mirror_axes: Sequence[int],
    source: str,
) -> Plan:
    """The plan that a configuration comes to.

    Args:
        plans: ``plans.json``.
        dataset: ``dataset.json``.
        configuration: Its name.
        mirror_axes: From the checkpoint, in the foreign axis order.
        source: What to call the folder in a message.

    Raises:
        PackageError: Something of it is not known here, or does not hold together.
    """
    try:
        return _plan_of(plans, dataset, configuration, tuple(mirror_axes), source)
    except ValidationError as error:
        raise PackageError(source, expected="plans that fit", got=describe(error)) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise PackageError(source, expected="plans of nnU-Net v2", got=got) from error


def _plan_of(
    plans: Json, dataset: Json, configuration: str, mirror_axes: tuple[int, ...], source: str
) -> Plan:
    setup = configuration_named(plans, configuration, source=source)
    _known("preprocessor", setup.get("preprocessor_name"), ("DefaultPreprocessor",), source)
    _known("label manager", plans.get("label_manager", "LabelManager"), ("LabelManager",), source)
    reader = _known("image reader", plans.get("image_reader_writer"), tuple(_READERS), source)
    flat = len(setup["patch_size"]) == 2
    regions = has_regions(dataset)
    labels = labels_of(dataset, source=source)
    channels = _channels(plans, dataset, setup, source)
    earlier = _earlier_labels(labels, source) if setup.get("previous_stage") else 0
    transpose = plans.get("transpose_forward", (0, 1, 2))
    # Arrays there are (k, j, i); of a 2D model the axis it runs through comes last here.
    order = [2 - int(axis) for axis in ((*transpose[1:], transpose[0]) if flat else transpose)]
    spacing, patch = list(setup["spacing"]), list(setup["patch_size"])
    return Plan(
        labels=labels,
        channels=channels,
        modality=_MODALITIES.get(channels[0].name.lower(), ""),
        scan_names="numbered",
        orientation="ras" if _READERS[reader] else "stored",
        axis_order=(order[0], order[1], order[2]),
        crop="nonzero",
        spacing_mm=tuple(spacing + [None] * flat),
        resampling=_resampling(setup, source),
        patch_size=tuple(patch + [1] * flat),
        activation="regions" if regions else "softmax",
        cascade_labels=earlier,
        network=network_plan(
            setup,
            channels=len(channels) + earlier,
            classes=len(labels) + (not regions),
            source=source,
        ),
        training=TrainingPlan(
            batch_size=setup.get("batch_size", 2), optimiser="sgd", learning_rate=0.01
        ),
        inference=InferencePlan(
            gaussian_floor=0.0,
            gaussian_centre="voxel",
            mirror_axes=mirror_axes,
        ),
        reasons={"source": f"imported from nnU-Net v2, configuration {configuration}"},
    )


def _earlier_labels(labels: LabelSet, source: str) -> int:
    """How many channels the labels of a first stage take: one for each value it can paint."""
    values = sorted({value for label in labels.labels for value in label.sources})
    if values != list(range(1, len(values) + 1)):
        raise PackageError(source, expected="label values without gaps", got=str(values))
    return len(values)


def has_regions(dataset: Json) -> bool:
    """Whether its labels overlap: then each has a sigmoid of its own."""
    values = dataset["labels"].values()
    return any(isinstance(value, list | tuple) and len(value) > 1 for value in values)


def labels_of(dataset: Json, *, source: str) -> LabelSet:
    """The labels that a model gives: without background and without the ignored one.

    With regions, one label a region in the file's order, with the value that it is painted
    with and the values that it unites.

    Raises:
        PackageError: Values have gaps, or regions have no order.
    """
    named = {
        str(name): tuple(int(one) for one in (value if isinstance(value, list) else [value]))
        for name, value in dataset["labels"].items()
        if name != "ignore"
    }
    parts = [(name, values) for name, values in named.items() if set(values) != {0}]
    if has_regions(dataset):
        order = [int(value) for value in dataset.get("regions_class_order") or ()]
        if len(order) != len(parts):
            raise PackageError(
                source, expected=f"regions_class_order of {len(parts)} values", got=str(order)
            )
    else:
        parts.sort(key=lambda part: part[1])
        order = [values[0] for _, values in parts]
        if order != list(range(1, len(parts) + 1)):
            raise PackageError(source, expected="label values without gaps", got=str(order))
    try:
        return LabelSet(
            labels=tuple(
                Label(value=value, name=name, colour=palette_colour(place), sources=sources)
                for place, (value, (name, sources)) in enumerate(zip(order, parts, strict=True))
            )
        )
    except (ValidationError, LabelError) as error:
        raise PackageError(source, expected="labels that differ", got=str(order)) from error


def _channels(plans: Json, dataset: Json, setup: Json, source: str) -> tuple[ChannelPlan, ...]:
    names = dataset.get("channel_names") or dataset["modality"]
    figures = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    schemes = setup["normalization_schemes"]
    masked = setup.get("use_mask_for_norm") or [False] * len(schemes)
    if not len(names) == len(schemes) == len(masked):
        got = f"{len(schemes)} normalisations and {len(masked)} masks"
        raise PackageError(source, expected=f"one for each of {len(names)} channels", got=got)
    made = []
    for place, (name, scheme) in enumerate(zip(names.values(), schemes, strict=True)):
        kind = _SCHEMES[_known("normalisation", scheme, tuple(_SCHEMES), source)]
        if kind == "zscore" and masked[place]:
            kind = "zscore_mask"
        found = figures[str(place)] if kind == "ct" else {}
        made.append(
            ChannelPlan(
                name=str(name),
                normalisation=kind,
                clip_low=found.get("percentile_00_5"),
                clip_high=found.get("percentile_99_5"),
                mean=found.get("mean"),
                std=found.get("std"),
            )
        )
    return tuple(made)


def _known(what: str, name: Any, known: Sequence[str], source: str) -> str:
    if name not in known:
        raise refuse(what, name, known, source)
    return str(name)


def _resampling(setup: Json, source: str) -> ResamplingPlan:
    rules, thresholds = {}, set()
    for ours, theirs in (("image", "data"), ("labels", "seg"), ("logits", "probabilities")):
        name = f"resampling_fn_{theirs}"
        function = _known("resampler", setup[name], tuple(_RESAMPLERS), source)
        options = dict(setup.get(f"{name}_kwargs") or {})
        thresholds.add(float(options.pop("separate_z_anisotropy_threshold", 3)))
        rules[ours] = _RESAMPLERS[function](options, source)
        if options:
            raise refuse(f"option of {function}", next(iter(options)), (), source)
    if len(thresholds) > 1:
        raise PackageError(source, expected="one anisotropy threshold", got=str(thresholds))
    return ResamplingPlan(**rules, anisotropy=thresholds.pop(), rounding="half_even")


def _spline(options: dict[str, Any], source: str) -> AxisResampling:
    options.pop("is_seg", None)
    order, coarse = options.pop("order", 3), options.pop("order_z", 0)
    for value in (order, coarse):
        if value not in (0, 1, 3):
            raise refuse("resampling order", value, ("0", "1", "3"), source)
    force = options.pop("force_separate_z", False)
    return AxisResampling(order=order, coarse_order=coarse, separate=_SEPARATE[force])


def _torch(options: dict[str, Any], source: str) -> AxisResampling:
    for unused in ("is_seg", "num_threads", "memefficient_seg_resampling"):
        options.pop(unused, None)
    for name, only in (("mode", "linear"), ("aniso_axis_mode", "nearest-exact")):
        _known(f"resampling {name}", options.pop(name, only), (only,), source)
    force = options.pop("force_separate_z", None)
    return AxisResampling(order=1, coarse_order=0, separate=_SEPARATE[force])


def _simple(options: dict[str, Any], source: str) -> AxisResampling:
    _torch(options, source)
    return AxisResampling(order=1)


_SEPARATE: dict[bool | None, Any] = {None: "auto", True: "always", False: "never"}
_RESAMPLERS: dict[str, Callable[[dict[str, Any], str], AxisResampling]] = {
    "resample_data_or_seg_to_shape": _spline,
    "resample_torch_fornnunet": _torch,
    "resample_torch_simple": _simple,
}
