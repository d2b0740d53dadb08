"""Which samples a process takes: none twice, none left out, whoever shares the step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch

from medseg.training.loader import Batches, Draw, Portion
from tests.models import small_plan
from tests.training.test_loader import CASES, CPU


def source(portion: Portion, *, batch: int) -> Batches:
    plan = small_plan(**{"training.batch_size": batch, "training.foreground_share": 0.5})
    return Batches(CASES, plan, seed=5, device=CPU, portion=portion)


def keys(draws: Sequence[Draw]) -> list[tuple[float, ...]]:
    """What tells one draw from another, in an order of its own."""
    return sorted(
        (draw.case, *draw.centre.tolist(), *np.ravel(draw.variation.matrix).tolist())
        for draw in draws
    )


@pytest.mark.parametrize(("batch", "processes", "parts"), [(1, 4, 1), (2, 2, 1), (1, 2, 2)])
def test_together_they_take_the_samples_of_one_large_batch(
    batch: int, processes: int, parts: int
) -> None:
    whole = source(Portion(), batch=4)
    shared = [source(Portion(rank, processes, parts), batch=batch) for rank in range(processes)]
    for step in (0, 1, 7):
        together = [d for one in shared for part in range(parts) for d in one.draw(step, part)]
        assert keys(together) == keys(whole.draw(step))


def test_each_case_comes_once_a_round_over_all_processes() -> None:
    shared = [source(Portion(rank, 3), batch=2) for rank in range(3)]
    drawn = [draw.case for step in range(4) for one in shared for draw in one.draw(step)]
    assert sorted(drawn) == sorted(list(range(len(CASES))) * 8)


def test_each_part_holds_its_share_of_foreground() -> None:
    batches = source(Portion(0, 1, 3), batch=2)
    for step in range(5):
        for part in range(3):
            assert bool((batches.batch(step, part)[1].labels[1] > 0).any())


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_come_one_after_another(workers: int) -> None:
    plan = small_plan()
    batches = Batches(
        CASES, plan, seed=5, device=CPU, workers=workers, portion=Portion(1, 2, parts=2)
    )
    stream = batches.iterate(3)
    seen = list(islice(stream, 4))
    stream.close()
    for (images, _), place in zip(seen, [(3, 0), (3, 1), (4, 0), (4, 1)], strict=True):
        assert torch.equal(images, batches.batch(*place)[0])
