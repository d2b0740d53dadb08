"""What masks mean beyond plain labels: regions that overlap, voxels to be ignored, labels that
were annotated in some cases only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.core.errors import DatasetError
from medseg.core.label_scheme import LabelScheme
from medseg.core.labels import Label, LabelSet, palette_colour
from medseg.datasets.dataset import Case, Dataset, Region, listing
from medseg.datasets.description import labels_of

_log = logging.getLogger(__name__)
_IGNORE = "ignore"
_ORDER = "regions_class_order"


def meaning_of(
    raw: dict[str, Any], *, path: Path
) -> tuple[LabelSet, tuple[Region, ...], int | None]:
    """Labels, regions and the value to be ignored; with regions every value gets a plain label.

    Source: ``region_based_training.md`` and ``ignore_label.md`` of nnU-Net 2.

    Raises:
        DatasetError: The key ``labels`` is malformed.
    """
    given = raw.get("labels")
    entries = dict(given) if isinstance(given, dict) else {}
    ignore = next((v for k, v in entries.items() if str(k).casefold() == _IGNORE), None)
    kept = {k: v for k, v in entries.items() if str(k).casefold() != _IGNORE}
    ignore = ignore if isinstance(ignore, int) and not isinstance(ignore, bool) else None
    if not any(isinstance(value, list) for value in kept.values()):
        named = kept if isinstance(given, dict) else given
        return labels_of({"labels": named}, path=path), (), ignore
    parts: list[tuple[str, tuple[int, ...]]] = []
    for name, values in kept.items():
        many = values if isinstance(values, list) else [values]
        if not many or not all(isinstance(v, int) and not isinstance(v, bool) for v in many):
            raise DatasetError(
                f"{path}, key 'labels'", expected="whole numbers per region",
                got=json.dumps({name: values})[:80],
            )  # fmt: skip
        if many != [0]:
            parts.append((name, tuple(many)))
    order = raw.get(_ORDER)
    places: list[int | None] = [None] * len(parts)
    if isinstance(order, list) and len(order) == len(parts):
        places = [value if isinstance(value, int) else None for value in order]
    regions = tuple(Region(*part, value) for part, value in zip(parts, places, strict=True))
    painted = {region.value: region.name for region in regions}
    values = sorted({value for region in regions for value in region.values} - {0})
    names = {str(value): painted.get(value, f"label {value}") for value in values}
    return labels_of({"labels": names}, path=path), regions, ignore


def without_ignore(dataset: Dataset) -> Dataset:
    """The dataset; a label of the name ``ignore`` becomes the value to be ignored.

    Raises:
        DatasetError: There is no other label.
    """
    found = [label for label in dataset.labels.labels if label.name.casefold() == _IGNORE]
    if not found or dataset.ignore is not None:
        return dataset
    kept = tuple(label for label in dataset.labels.labels if label not in found)
    if not kept:
        raise DatasetError(
            f"dataset '{dataset.name}'", expected="a label besides 'ignore'", got="none",
            cure="Name every value that the masks hold.",
        )  # fmt: skip
    return replace(dataset, labels=LabelSet(labels=kept), ignore=found[0].value)


def annotated_values(
    given: object, labels: LabelSet, regions: Sequence[Region] = (), *, where: str
) -> tuple[int, ...] | None:
    """The mask values that were annotated in a case; None where nothing is said: all were.

    Args:
        given: Names or values of labels or regions: a list, or a text with ``;`` or ``,``.
        labels: Of the dataset.
        regions: Of the dataset.
        where: What to call the case in messages.

    Raises:
        DatasetError: One is no label of the dataset.
    """
    if isinstance(given, str):
        given = [
            part.strip() for part in given.replace(";", ",").split(",") if part.strip()
        ] or None
    if given is None:
        return None
    known = {region.name.casefold(): region.values for region in regions}
    for label in labels.labels:
        known.setdefault(label.name.casefold(), (label.value,))
        known.setdefault(str(label.value), (label.value,))
    terms = [str(term).casefold() for term in given] if isinstance(given, list) else []
    strange = [term for term in terms if term not in known]
    if strange or not terms:
        names = [*(region.name for region in regions), *labels.names]
        raise DatasetError(
            f"{where}, 'annotated'",
            expected=f"labels of the dataset ({listing(list(dict.fromkeys(names)))})",
            got=listing(strange) or json.dumps(given)[:80],
            cure="Name the labels that were looked for in this case; leave it away for all.",
        )
    return tuple(sorted({value for term in terms for value in known[term]}))


def stated_scheme(dataset: Dataset) -> LabelScheme:
    """What the masks of a dataset say: all labels, or all regions, and what is to be ignored.

    Raises:
        DatasetError: Regions have no order or hold background.
    """
    labels = _region_labels(dataset) if dataset.regions else dataset.labels
    return LabelScheme(labels, regions=bool(dataset.regions), ignore=dataset.ignore)


def training_scheme(dataset: Dataset, selection: str | None = None) -> LabelScheme:
    """What training learns from a dataset.

    Args:
        dataset: As it was opened.
        selection: ``--labels``: select, merge and rename; None for all.

    Raises:
        DatasetError: Regions have no order or hold background, the value to be ignored is not
            the highest, or no case has all that a label needs.
        LabelError: The selection names what is not there.
    """
    base = stated_scheme(dataset).labels
    highest = max(max(label.sources) for label in base.labels)
    if dataset.ignore is not None and dataset.ignore <= highest:
        raise DatasetError(
            f"dataset '{dataset.name}', label 'ignore'",
            expected=f"a value above all others ({highest})",
            got=str(dataset.ignore),
            cure="Give it the highest value, in the masks and in the description.",
        )
    labels = base.regroup(selection) if selection else base
    scheme = LabelScheme(labels, regions=bool(dataset.regions), ignore=dataset.ignore)
    told = [scheme.known(case.annotated) for case in dataset.cases]
    never = [
        name
        for place, name in enumerate(labels.names)
        if not any(known is None or known[place] for known in told)
    ]
    if never:
        raise DatasetError(
            f"dataset '{dataset.name}'",
            expected="each label annotated in at least one case",
            got=f"none with {listing(never)}",
            cure="Correct 'annotated' of the cases, or leave the label out with --labels. A label "
            "made of several is annotated where all of them are.",
        )
    _tell_gaps(dataset, scheme)
    return scheme


def _tell_gaps(dataset: Dataset, scheme: LabelScheme) -> None:
    """Log what some cases have not."""
    told = [known for case in dataset.cases if (known := scheme.known(case.annotated))]
    for place, name in enumerate(scheme.labels.names):
        without = sum(not known[place] for known in told)
        if without:
            _log.info(
                "%s was not annotated in %d of %d cases: there it is one with background",
                name, without, len(dataset.cases),
            )  # fmt: skip
    for number, name in enumerate(dataset.channels):
        without = sum(number in case.missing for case in dataset.cases)
        if without:
            _log.info(
                "%d of %d cases have no image of %s: zeros stand for it, after normalisation; "
                "plan.training.channel_dropout lets the network learn to do without",
                without, len(dataset.cases), name,
            )  # fmt: skip


def _region_labels(dataset: Dataset) -> LabelSet:
    """The regions as labels, in the order in which they are painted."""
    where = f"dataset '{dataset.name}'"
    lost = [region.name for region in dataset.regions if region.value is None]
    order = [region.value for region in dataset.regions if region.value is not None]
    if lost or len(set(order)) != len(order) or not all(1 <= value <= 65535 for value in order):
        raise DatasetError(
            f"{where}, key '{_ORDER}'",
            expected=f"the value that each of {len(dataset.regions)} regions is painted with, "
            "later ones over earlier",
            got=f"none for {listing(lost)}" if lost else str(order),
            cure=f'For example "{_ORDER}": {list(range(1, len(dataset.regions) + 1))}.',
        )
    zero = [region.name for region in dataset.regions if 0 in region.values]
    if zero:
        raise DatasetError(
            f"{where}, key 'labels'", expected="regions of labels", got=f"background in {zero[0]}",
            cure="Take 0 out of the region; what is in no region is background.",
        )  # fmt: skip
    if any(dataset.ignore in region.values for region in dataset.regions):
        raise DatasetError(f"{where}, key 'labels'", expected="regions without 'ignore'", got="it")
    return LabelSet(
        labels=tuple(
            Label(
                value=value, name=region.name, colour=palette_colour(place), sources=region.values
            )
            for place, (region, value) in enumerate(zip(dataset.regions, order, strict=True))
        )
    )


def with_annotations(
    cases: Sequence[Case],
    given: Sequence[object],
    labels: LabelSet,
    regions: Sequence[Region] = (),
    *,
    where: str,
) -> tuple[Case, ...]:
    """The cases, each with the values that were annotated in it; ``given`` has one entry each."""
    return tuple(
        replace(
            case, annotated=annotated_values(one, labels, regions, where=f"{where}, case {case.id}")
        )
        for case, one in zip(cases, given, strict=True)
    )
