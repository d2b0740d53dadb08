"""Several trained models joined to a set, which segments a scan as one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from medseg import __version__
from medseg.core.errors import FileError, InputError, OutputError, SettingsError
from medseg.core.labels import LabelSet
from medseg.core.plan import Order, PostprocessStep, describe
from medseg.package.model_set import SetFile, SetMember, SharedGrid, is_set, save_set
from medseg.package.package import ModelPackage, is_package
from medseg.workflows.api import package_of

Combine = Literal["paint", "mean"]
Restore = Literal["logits", "labels-nearest"]


def make_set(
    out: str | Path,
    members: Sequence[str | Path],
    *,
    combine: Combine = "paint",
    restore: Restore = "logits",
    spacing_mm: Sequence[float] | None = None,
    order: Order = 3,
    maps: str | Path | Sequence[Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Join models to a set: a folder that ``predict`` and ``load_model`` take as one model.

    Args:
        out: A new folder, an empty one, or a set to replace.
        members: Packages, run folders, or folders of nnU-Net v2; copied into the set.
        combine: ``"paint"``: masks are painted in this order, later over earlier.
            ``"mean"``: the probabilities of models of the same labels are averaged.
        restore: ``"logits"`` are interpolated to the scan's grid, or ``"labels-nearest"``.
        spacing_mm: Three numbers: the scan is brought to this spacing in RAS+ once, before
            each model's own preprocessing; None leaves it as it is.
        order: Of that: 0 nearest, 1 linear, 3 cubic.
        maps: For each member its label names to those of the set, or a JSON file that holds
            the list; labels that are not named are dropped. None keeps all by their names.

    Returns:
        ``{"out": path, "sha256": hash, "members": n, "labels": {value: name}}``.

    Raises:
        PackageError: A model is damaged, or they do not go together.
        InputError: ``out`` holds something else, or an argument is out of range.
        OutputError: ``out`` cannot be written.
    """
    target = Path(out)
    _check_target(target)
    if not members:
        raise InputError("members", expected="at least one model", got="none")
    packages = [package_of(path) for path in members]
    wanted = _maps_of(maps, packages)
    labels = _joined_labels(packages, wanted)
    places = [
        {"folder": f"members/{number}_{_word(path)}", "labels": one}
        for number, (path, one) in enumerate(zip(members, wanted, strict=True))
    ]
    if order not in get_args(Order):
        raise SettingsError("--order", expected="0, 1 or 3", got=str(order))
    grid = None if spacing_mm is None else {"spacing_mm": tuple(spacing_mm), "order": order}
    file = _file_of(
        labels=labels, members=places, combine=combine, restore=restore, resampling=grid,
        postprocess=_shared_chain(packages, wanted) if combine == "mean" else (),
    )  # fmt: skip
    sha256 = save_set(target, file, packages)
    return {
        "out": str(target),
        "sha256": sha256,
        "members": len(packages),
        "labels": {str(label.value): label.name for label in labels.labels},
    }


def _file_of(**facts: Any) -> SetFile:
    for name, kind in (("combine", Combine), ("restore", Restore)):
        if facts[name] not in get_args(kind):
            expected = " or ".join(get_args(kind))
            raise SettingsError(f"--{name}", expected=expected, got=repr(facts[name]))
    try:
        members = tuple(SetMember(**one) for one in facts.pop("members"))
        grid = facts.pop("resampling")
        shared = None if grid is None else SharedGrid(**grid)
        return SetFile(medseg_version=__version__, members=members, resampling=shared, **facts)
    except ValidationError as error:
        raise InputError(
            "the set", expected="models that go together", got=describe(error)
        ) from error


def _maps_of(
    maps: str | Path | Sequence[Mapping[str, str]] | None, packages: Sequence[ModelPackage]
) -> list[dict[str, str]]:
    if maps is None:
        return [{name: name for name in package.plan.labels.names} for package in packages]
    source = "maps"
    given: Any = maps
    if isinstance(maps, str | Path):
        source = str(maps)
        try:
            given = json.loads(Path(maps).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileError(source, expected="JSON", got=str(error)) from error
    fits = isinstance(given, Sequence) and len(given) == len(packages)
    if not fits or not all(isinstance(one, Mapping) and one for one in given):
        raise InputError(
            source,
            expected=f"a list of {len(packages)} objects: label of the model to label of the set",
            got=f"{len(given)} of them" if isinstance(given, list) else type(given).__name__,
        )
    return [
        {package.plan.labels.named(str(name)).name: str(new) for name, new in one.items()}
        for package, one in zip(packages, given, strict=True)
    ]


def _joined_labels(packages: Sequence[ModelPackage], maps: Sequence[Mapping[str, str]]) -> LabelSet:
    """Labels with the models' own values where those do not clash, else numbered from 1."""
    values: dict[str, int] = {}
    for package, names in zip(packages, maps, strict=True):
        for label in package.plan.labels.labels:
            if label.name in names:
                values.setdefault(names[label.name], label.value)
    if len(set(values.values())) < len(values):
        values = {name: number for number, name in enumerate(values, start=1)}
    return LabelSet.from_names({value: name for name, value in values.items()})


def _shared_chain(
    packages: Sequence[ModelPackage], maps: Sequence[Mapping[str, str]]
) -> tuple[PostprocessStep, ...]:
    """The post-processing of models whose mean is taken, where it is the same for all."""
    chains = [
        tuple(
            step.model_copy(update={"evidence": ""})
            for step in (step.renamed(names) for step in package.plan.postprocess)
            if step is not None
        )
        for package, names in zip(packages, maps, strict=True)
    ]
    return chains[0] if all(chain == chains[0] for chain in chains) else ()


def _word(path: str | Path) -> str:
    """A short name for a folder of the set, from that of the model: ``runs/organs/model``."""
    full = Path(path).resolve()
    name = full.parent.name if full.name == "model" else full.name
    return re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_")[:40] or "model"


def _check_target(target: Path) -> None:
    try:
        known = is_set(target) or is_package(target)
        taken = target.exists() and not is_set(target) and (known or any(target.iterdir()))
    except OSError as error:
        got = error.strerror or str(error)
        raise OutputError(str(target), expected="a folder that can be written", got=got) from error
    if taken:
        raise InputError(
            str(target),
            expected="a new folder or a set to replace",
            got="a folder with other files",
            cure="Choose another --out.",
        )
