"""One step: nothing of it waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medseg.training.determinism import seed_step
from medseg.training.epoch import Epoch
from medseg.training.loader import Batches
from medseg.training.step import Stepper, new_state, update_average
from tests.models import small_plan
from tests.training.test_loader import CASES, CPU

# Operations whose result the host must see before it can go on.
_WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU; seen on a CPU just as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in _WAITING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("activation", ["softmax", "regions"])
def test_no_step_waits_for_the_device(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"network.classes": 2} if activation == "regions" else {}
    plan = small_plan(activation=activation, **changes)
    state = new_state(plan, seed=0, device=CPU)
    step_once = Stepper(state, plan, CPU)
    batch = Batches(CASES, plan, seed=0, device=CPU).batch(0)
    # The optimiser counts its steps on the host; on a CPU that looks like waiting.
    monkeypatch.setattr(state.optimiser, "step", lambda closure=None: None)
    epoch = Epoch(2)
    with NoWaiting():
        seed_step(3, 0, 0)
        epoch.add(*step_once([batch], 0.01, progress=0.5))
        update_average(state, 0.99)
    assert epoch.first_fault() is None
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        float(torch.ones(()))


def test_the_average_moves_by_hand() -> None:
    plan = small_plan()
    state = new_state(plan, seed=0, device=CPU)
    with torch.no_grad():
        for value in state.network.parameters():
            value.fill_(3.0)
        for value in state.average.parameters():
            value.fill_(1.0)
    state.step = 2  # keeps (1 + 2) / (10 + 2) = 1/4 of what it was
    update_average(state, 0.99)
    for value in state.average.parameters():
        torch.testing.assert_close(value, torch.full_like(value, 2.5))
    state.step = 10_000
    update_average(state, 0.5)
    assert float(next(state.average.parameters()).detach().flatten()[0]) == pytest.approx(2.75)
