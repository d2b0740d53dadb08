"""Who trains and who judges. Chance depends on the seed and the case ids, nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from medseg.core.errors import DatasetError
from medseg.datasets.dataset import Dataset, Split, listing

FOLDS = 5
_FEWEST_FOR_INNER = 5


def folds(dataset: Dataset, *, seed: int) -> tuple[Split, ...]:
    """The folds of a dataset: its own, else five made here (fewer where there are fewer groups).

    Made folds keep the cases of one group together and differ by at most one group's size.

    Raises:
        DatasetError: ``splits.json`` names unknown cases, or one case on both sides of a
            fold; or there are too few cases to make two folds.
    """
    if dataset.splits is not None:
        for number, split in enumerate(dataset.splits):
            _check(split, dataset, number=number)
        return dataset.splits
    groups: dict[str, list[str]] = {}
    for case in dataset.cases:
        groups.setdefault(f"group {case.group}" if case.group else case.id, []).append(case.id)
    if len(groups) < 2:
        raise DatasetError(
            f"dataset '{dataset.name}'",
            expected="at least two cases of different groups",
            got=f"{len(dataset.cases)} in {len(groups)}",
            cure="Use --fold all-data.",
        )
    parts: list[list[str]] = [[] for _ in range(min(FOLDS, len(groups)))]
    # Large groups first, so that the parts come out even.
    for group in sorted(groups, key=lambda name: (-len(groups[name]), _draw(name, seed))):
        min(parts, key=len).extend(groups[group])
    everyone = sorted(case.id for case in dataset.cases)
    return tuple(
        Split(tuple(i for i in everyone if i not in set(part)), tuple(sorted(part)))
        for part in parts
    )


def split_for(dataset: Dataset, fold: str, seed: int) -> Split:
    """The split of one fold: ``"0"`` to ``"4"``, or ``"all-data"`` (nobody judges).

    Raises:
        DatasetError: There is no such fold, or ``splits.json`` does not fit the dataset.
    """
    if fold == "all-data":
        return Split(tuple(sorted(case.id for case in dataset.cases)), ())
    made = folds(dataset, seed=seed)
    if not fold.isdecimal() or int(fold) >= len(made):
        raise DatasetError(
            f"--fold {fold}",
            expected=f"0 to {len(made) - 1}, or all-data",
            got=f"a fold that dataset '{dataset.name}' does not have",
        )
    return made[int(fold)]


def inner_split(
    case_ids: Sequence[str], *, share: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keep back a share of the training cases, by which weights and post-processing are chosen.

    Args:
        case_ids: The training cases of a fold.
        share: Share to keep back, 0 to 0.5; at least one case unless it is 0.
        seed: Another seed keeps back other cases.

    Returns:
        Ids to train on and ids kept back, each sorted; fewer than five cases keep none back.
    """
    everyone = sorted(case_ids)
    if share <= 0 or len(everyone) < _FEWEST_FOR_INNER:
        return tuple(everyone), ()
    kept = sorted(everyone, key=lambda name: _draw(name, seed, "inner"))
    kept = kept[: max(1, round(share * len(everyone)))]
    return tuple(name for name in everyone if name not in set(kept)), tuple(sorted(kept))


def _check(split: Split, dataset: Dataset, *, number: int) -> None:
    where = f"{dataset.folder / 'splits.json'}, fold {number}"
    known = {case.id for case in dataset.cases}
    unknown = sorted({*split.train, *split.validation} - known)
    if unknown:
        raise DatasetError(
            where,
            expected="ids of cases in dataset.json",
            got=f"unknown {listing(unknown)}",
            cure="An id is the image's file name without its suffix.",
        )
    both = sorted(set(split.train) & set(split.validation))
    if both:
        raise DatasetError(
            where,
            expected="each case on one side",
            got=f"on both sides {listing(both)}",
            cure="Take them out of one of the two lists.",
        )
    if not split.train:
        raise DatasetError(where, expected="cases to train on", got="none")


def _draw(name: str, seed: int, purpose: str = "fold") -> str:
    """A number that looks random, from its arguments alone: the same on every machine."""
    return hashlib.sha256(f"{purpose}\0{seed}\0{name}".encode()).hexdigest()
