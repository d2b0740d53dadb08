"""Who trains and who judges. Chance depends on the seed and the case ids, nothing else."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from medseg.core.errors import DatasetError
from medseg.datasets.dataset import Dataset, Split, listing

FOLDS = 5
_FEWEST_FOR_INNER = 5


def folds(
    dataset: Dataset, *, seed: int, presence: Mapping[str, Collection[int]] | None = None
) -> tuple[Split, ...]:
    """The folds of a dataset: its own, else five made here (fewer where there are fewer groups).

    Made folds keep the cases of one group together, differ by at most the largest group's
    size, and share out each label as evenly as they can, the rarest first.

    Args:
        dataset: Its cases, groups and splits.
        seed: Another seed makes other folds.
        presence: The labels that each case shows (``label_presence``); None to balance
            the number of cases alone.

    Source: Sechidis, Tsoumakas, Vlahavas, "On the stratification of multi-label data", 2011,
    whose greedy order (rarest label first) is kept.

    Raises:
        DatasetError: ``splits.json`` names unknown cases, or one case on both sides of a
            fold; or there are too few cases to make two folds.
    """
    if dataset.splits is not None:
        for number, split in enumerate(dataset.splits):
            _check(split, dataset, number=number)
        return dataset.splits
    groups = _grouped([case.id for case in dataset.cases], dataset.groups)
    if len(groups) < 2:
        raise DatasetError(
            f"dataset '{dataset.name}'",
            expected="at least two cases of different groups",
            got=f"{len(dataset.cases)} in {len(groups)}",
            cure="Use --fold all-data.",
        )
    parts = _share_out(groups, presence or {}, seed=seed)
    everyone = sorted(case.id for case in dataset.cases)
    return tuple(
        Split(tuple(i for i in everyone if i not in set(part)), tuple(sorted(part)))
        for part in parts
    )


def _grouped(case_ids: Sequence[str], group_of: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in case_ids:
        group = group_of.get(name, "")
        groups.setdefault(f"group {group}" if group else name, []).append(name)
    return groups


def _share_out(
    groups: dict[str, list[str]], presence: Mapping[str, Collection[int]], *, seed: int
) -> list[list[str]]:
    """Deal the groups to the parts: rare labels and large groups first, evenly."""
    counts = {
        name: Counter(label for case in cases for label in presence.get(case, ()))
        for name, cases in groups.items()
    }
    total: Counter[int] = sum(counts.values(), Counter())

    def rank(name: str) -> tuple[float, int, str]:
        rarest = min((total[label] for label in counts[name]), default=math.inf)
        return rarest, -len(groups[name]), _draw(name, seed)

    parts: list[list[str]] = [[] for _ in range(min(FOLDS, len(groups)))]
    held: list[Counter[int]] = [Counter() for _ in parts]
    for name in sorted(groups, key=rank):
        fewest = min(map(len, parts))
        # Never more than one group ahead, so that the parts come out even.
        open_parts = [n for n, part in enumerate(parts) if len(part) < fewest + len(groups[name])]

        def crowd(number: int, own: Counter[int] = counts[name]) -> tuple[float, int]:
            share = sum(held[number][label] / total[label] ** 2 for label in own)
            return share, len(parts[number])

        chosen = min(open_parts, key=crowd)
        parts[chosen].extend(groups[name])
        held[chosen] += counts[name]
    return parts


def split_for(
    dataset: Dataset,
    fold: str,
    seed: int,
    *,
    presence: Mapping[str, Collection[int]] | None = None,
) -> Split:
    """The split of one fold: ``"0"`` to ``"4"``, or ``"all-data"`` (nobody judges).

    See :func:`folds` for ``presence``.

    Raises:
        DatasetError: There is no such fold, or ``splits.json`` does not fit the dataset.
    """
    if fold == "all-data":
        return Split(tuple(sorted(case.id for case in dataset.cases)), ())
    made = folds(dataset, seed=seed, presence=presence)
    if not fold.isdecimal() or int(fold) >= len(made):
        raise DatasetError(
            f"--fold {fold}",
            expected=f"0 to {len(made) - 1}, or all-data",
            got=f"a fold that dataset '{dataset.name}' does not have",
        )
    return made[int(fold)]


def inner_split(
    case_ids: Sequence[str],
    *,
    share: float,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keep back a share of the training cases, by which weights and post-processing are chosen.

    Args:
        case_ids: The training cases of a fold.
        share: Share to keep back, 0 to 0.5; at least one case unless it is 0.
        seed: Another seed keeps back other cases.
        groups: Group of each case that has one; a group stays on one side.

    Returns:
        Ids to train on and ids kept back, each sorted; fewer than five cases, or a single
        group, keep none back.
    """
    everyone = sorted(case_ids)
    grouped = _grouped(everyone, groups or {})
    if share <= 0 or len(everyone) < _FEWEST_FOR_INNER or len(grouped) < 2:
        return tuple(everyone), ()
    wanted = max(1, round(share * len(everyone)))
    order = sorted(grouped, key=lambda name: _draw(name, seed, "inner"))
    kept: list[str] = []
    for name in order:
        # A large group is passed over where it would take far more than the share.
        if len(kept) + len(grouped[name]) <= wanted:
            kept += grouped[name]
    if not kept:
        kept = grouped[min(order, key=lambda name: len(grouped[name]))]
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
