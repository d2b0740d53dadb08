from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import DatasetError
from medseg.core.labels import LabelSet
from medseg.datasets.dataset import Case, Dataset, Split
from medseg.datasets.msd import read_msd
from medseg.datasets.splits import folds, inner_split, split_for


def dataset(
    ids: list[str], *, groups: dict[str, str] | None = None, splits: tuple[Split, ...] | None = None
) -> Dataset:
    cases = tuple(
        Case(name, (Path(f"{name}.nii.gz"),), None, group=(groups or {}).get(name, ""))
        for name in ids
    )
    labels = LabelSet.from_names({1: "organ"})
    return Dataset("made up", Path("made_up"), ("CT",), ("CT",), labels, cases, splits, "")


names = st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=2, max_size=40, unique=True)


@given(names, st.integers(0, 2**63 - 1))
def test_every_case_judges_once(ids: list[str], seed: int) -> None:
    made = folds(dataset(ids), seed=seed)
    assert len(made) == min(5, len(ids))
    assert Counter(name for split in made for name in split.validation) == Counter(ids)
    for split in made:
        assert set(split.train) | set(split.validation) == set(ids)
        assert not set(split.train) & set(split.validation)
    sizes = [len(split.validation) for split in made]
    assert max(sizes) - min(sizes) <= 1


@given(names, st.randoms())
def test_order_of_cases_does_not_matter(ids: list[str], random: Any) -> None:
    shuffled = ids.copy()
    random.shuffle(shuffled)
    assert folds(dataset(ids), seed=3) == folds(dataset(shuffled), seed=3)


def test_another_seed_another_split() -> None:
    ids = [f"case_{n}" for n in range(20)]
    assert folds(dataset(ids), seed=0) == folds(dataset(ids), seed=0)
    assert folds(dataset(ids), seed=0) != folds(dataset(ids), seed=1)


@given(st.lists(st.integers(0, 7), min_size=8, max_size=40), st.integers(0, 99))
def test_groups_stay_together(members: list[int], seed: int) -> None:
    groups = {f"scan_{n}": f"patient {group}" for n, group in enumerate(members)}
    if len(set(members)) < 2:
        return
    for split in folds(dataset(list(groups), groups=groups), seed=seed):
        sides = [{groups[name] for name in side} for side in (split.train, split.validation)]
        assert not sides[0] & sides[1]


def test_a_group_is_not_a_case_of_the_same_name() -> None:
    ids = ["a", "b", "c"]
    made = folds(dataset(ids, groups={"a": "b", "c": "b"}), seed=0)
    assert sorted(split.validation for split in made) == [("a", "c"), ("b",)]


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DatasetError, match="all-data"):
        folds(dataset(["only"]), seed=0)
    assert split_for(dataset(["only"]), "all-data", 0) == Split(("only",), ())


def test_fold_by_name() -> None:
    three = dataset(["a", "b", "c"])
    assert split_for(three, "2", 7) == folds(three, seed=7)[2]
    for absent in ("3", "-1", "all", "two"):
        with pytest.raises(DatasetError, match="0 to 2"):
            split_for(three, absent, 7)


def test_splits_of_the_dataset_win() -> None:
    own = (Split(("b",), ("a", "c")),)
    three = dataset(["a", "b", "c"], splits=own)
    assert folds(three, seed=0) == own
    assert split_for(three, "0", 5) == own[0]


@pytest.mark.parametrize(
    ("split", "told"),
    [
        (Split(("a", "nobody"), ("b",)), "nobody"),
        (Split(("a",), ("b", "nobody")), "nobody"),
        (Split(("a", "b"), ("b",)), "both sides b"),
        (Split((), ("b",)), "cases to train on"),
    ],
)
def test_splits_that_do_not_fit(split: Split, told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        split_for(dataset(["a", "b", "c"], splits=(split,)), "0", 0)


def test_real_splits(shared_data: Any) -> None:
    real = read_msd(shared_data("hippocampus"))
    made = folds(real, seed=0)
    assert made == real.splits
    assert Counter(name for split in made for name in split.validation) == Counter(
        case.id for case in real.cases
    )


@given(names, st.floats(0.01, 0.49), st.integers(0, 99))
def test_inner_split(ids: list[str], share: float, seed: int) -> None:
    train, inner = inner_split(ids, share=share, seed=seed)
    assert sorted(train + inner) == sorted(ids)
    assert len(inner) == (0 if len(ids) < 5 else max(1, round(share * len(ids))))
    assert inner_split(ids[::-1], share=share, seed=seed) == (train, inner)


def test_no_inner_split() -> None:
    ids = [f"case_{n}" for n in range(10)]
    assert inner_split(ids, share=0.0, seed=0) == (tuple(ids), ())
    assert inner_split(ids, share=0.2, seed=0) != inner_split(ids, share=0.2, seed=1)


def test_rare_labels_are_shared_out() -> None:
    """Ten of fifty cases show the rare label 2: each of five folds judges two of them."""
    ids = [f"case_{n:02d}" for n in range(50)]
    presence = {name: (1, 2) if n % 5 == 0 and n < 50 else (1,) for n, name in enumerate(ids)}
    for seed in range(20):
        for split in folds(dataset(ids), seed=seed, presence=presence):
            assert sum(2 in presence[name] for name in split.validation) == 2
            assert len(split.validation) == 10


@given(st.lists(st.integers(0, 9), min_size=10, max_size=40), st.integers(0, 99))
def test_balanced_folds_keep_groups_and_sizes(members: list[int], seed: int) -> None:
    groups = {f"scan_{n}": f"patient {group}" for n, group in enumerate(members)}
    presence = {name: (n % 3, 3 + n % 2) for n, name in enumerate(groups)}
    if len(set(members)) < 2:
        return
    made = folds(dataset(list(groups), groups=groups), seed=seed, presence=presence)
    assert Counter(name for split in made for name in split.validation) == Counter(list(groups))
    for split in made:
        assert not {groups[n] for n in split.train} & {groups[n] for n in split.validation}
    sizes = [len(split.validation) for split in made]
    assert max(sizes) - min(sizes) <= max(Counter(members).values())


def test_one_presence_for_all_changes_nothing() -> None:
    ids = [f"case_{n}" for n in range(23)]
    alike = dict.fromkeys(ids, (1, 2))
    assert folds(dataset(ids), seed=4, presence=alike) == folds(dataset(ids), seed=4)


@given(st.lists(st.integers(0, 7), min_size=6, max_size=40), st.floats(0.05, 0.49))
def test_inner_split_keeps_groups(members: list[int], share: float) -> None:
    groups = {f"scan_{n}": f"patient {group}" for n, group in enumerate(members)}
    train, inner = inner_split(list(groups), share=share, seed=0, groups=groups)
    assert sorted(train + inner) == sorted(groups)
    assert not {groups[name] for name in train} & {groups[name] for name in inner}
    assert train
    if len(set(members)) > 1:
        assert inner
