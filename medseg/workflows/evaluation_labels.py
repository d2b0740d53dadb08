"""What is scored: label names from masks, data sets, and the names of organ files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medseg.core.errors import DatasetError, LabelError, MedsegError, SettingsError
from medseg.core.label_scheme import LabelScheme
from medseg.core.labels import LabelSet
from medseg.datasets.dataset import Dataset
from medseg.datasets.open import open_dataset
from medseg.datasets.scheme import stated_scheme
from medseg.io.formats import read_label_names
from medseg.workflows.pairing import MaskPair, MaskSource, OrganFiles

_LOG = logging.getLogger(__name__)
_ANY_VALUE = range(1, 65536)


def find_labels(
    given: LabelSet | str | None, pairs: Sequence[MaskPair], references: Path
) -> LabelSet | None:
    """What to score; None when no name is known.

    Args:
        given: What the user said, if anything.
        pairs: The files; organs in a file each are known by their names.
        references: The folder that a ``dataset.json`` is looked for in and above.

    Raises:
        LabelError: A label is asked for by a name that is not known.
    """
    if isinstance(given, LabelSet):
        return given
    known, stated = _known(pairs, references)
    if isinstance(given, str):
        base = known or stated
        if base is None:
            raise LabelError(
                f"labels '{given}'", expected="masks whose labels have names", got="none",
                cure="Put a dataset.json beside the references.",
            )  # fmt: skip
        return base.regroup(given)
    if stated is not None and known is not None:
        _compare_names(stated, known)
    return stated or known


def find_scheme(
    given: LabelSet | str | None,
    pairs: Sequence[MaskPair],
    references: Path,
    *,
    ignore: int | None = None,
) -> tuple[LabelSet | None, bool, int | None]:
    """What to score, whether these labels are regions, and the value to be ignored.

    Args:
        given, pairs, references: As for :func:`find_labels`.
        ignore: The value to be ignored, as the user said; None takes that of the data set.

    Raises:
        LabelError: A label is asked for by a name that is not known.
        SettingsError: The value to be ignored is that of a label.
    """
    scheme = _stated_scheme(references)
    regions = False
    labels: LabelSet | None
    if scheme is not None and scheme.regions and not isinstance(given, LabelSet):
        regions = True
        labels = scheme.labels.regroup(given) if given else scheme.labels
    else:
        labels = find_labels(given, pairs, references)
    scored = {value for label in (labels.labels if labels else ()) for value in label.sources}
    if ignore is not None and ignore in scored:
        raise SettingsError(
            f"--ignore {ignore}", expected="a value that is no label", got="that of a label",
            cure="Say with --labels what is to be scored.",
        )  # fmt: skip
    if ignore is None and scheme is not None and scheme.ignore not in scored:
        ignore = scheme.ignore
    return labels, regions, ignore


def organ_values(pairs: Sequence[MaskPair], references: Path) -> dict[str, int]:
    """The value that each organ with a file of its own has, before labels are regrouped."""
    if not any(_organs_of(pairs)):
        return {}
    known, stated = _known(pairs, references)
    base = known or stated
    return {} if base is None else {
        name.casefold(): value for name, value in zip(base.names, base.values, strict=True)
    }  # fmt: skip


def lesion_values(names: Sequence[str] | str | None, labels: LabelSet | None) -> Sequence[int]:
    """The values of the labels whose lesions are scored.

    Raises:
        LabelError: No label has one of the names.
    """
    if not names:
        return ()
    wanted = [part.strip() for part in names.split(",")] if isinstance(names, str) else names
    if "*" in wanted:
        return _ANY_VALUE if labels is None else labels.values
    if labels is None:
        numbers = [int(name) for name in wanted if name.isdecimal()]
        if len(numbers) == len(wanted):
            return numbers
        raise LabelError(
            f"lesions '{', '.join(wanted)}'", expected="masks whose labels have names", got="none",
            cure="Name them by their values, or take '*' for all.",
        )  # fmt: skip
    return [labels.named(name).value for name in wanted]


def _known(pairs: Sequence[MaskPair], references: Path) -> tuple[LabelSet | None, LabelSet | None]:
    """The labels of the data set, and those that the predictions state."""
    stated = next(filter(None, (_names_in(pair.prediction) for pair in pairs)), None)
    known = _dataset_labels(references)
    organs = list(dict.fromkeys(_organs_of(pairs)))
    if not organs:
        return known, stated
    base = known or stated
    names = {} if base is None else dict(zip(base.values, base.names, strict=True))
    met = {name.casefold() for name in names.values()}
    free = max(names, default=0) + 1
    names |= dict(enumerate(sorted(name for name in organs if name.casefold() not in met), free))
    return LabelSet.from_names(names), None


def _organs_of(pairs: Sequence[MaskPair]) -> Iterator[str]:
    for pair in pairs:
        for side in (pair.reference, pair.prediction):
            if isinstance(side, OrganFiles):
                yield from side.files


def _names_in(prediction: MaskSource | None) -> LabelSet | None:
    if prediction is None or isinstance(prediction, OrganFiles):
        return None
    try:
        return read_label_names(prediction)
    except MedsegError:
        # A damaged file is told about when its turn comes.
        return None


def _dataset_labels(references: Path) -> LabelSet | None:
    found = _dataset(references)
    return None if found is None else found.labels


def _stated_scheme(references: Path) -> LabelScheme | None:
    found = _dataset(references)
    try:
        return None if found is None else stated_scheme(found)
    except DatasetError as error:
        _LOG.warning("regions are not scored as such: %s", error)
        return None


def _dataset(references: Path) -> Dataset | None:
    for folder in (references, *references.absolute().parents[:2]):
        if not (folder / "dataset.json").is_file():
            continue
        try:
            return open_dataset(folder, lenient=True)
        except DatasetError as error:
            _LOG.warning("label names are not taken from %s: %s", folder / "dataset.json", error)
    return None


def _compare_names(stated: LabelSet, known: LabelSet) -> None:
    theirs: Mapping[int, str] = dict(zip(known.values, known.names, strict=True))
    for label in stated.labels:
        other = theirs.get(label.value)
        if other is not None and other.casefold() != label.name.casefold():
            _LOG.warning(
                "value %d is '%s' in the predictions, but '%s' in dataset.json",
                label.value, label.name, other,
            )  # fmt: skip
