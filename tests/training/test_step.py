"""One step: nothing of it waits for the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medseg.training.determinism import seed_step
from medseg.training.epoch import Epoch
from medseg.training.loader import Batches
from medseg.training.step import Stepper, new_state, update_average
from tests.models import small_plan
from tests.training.test_loader import CASES, CPU

# A device without memory: whatever needs a value of it on the host is an error.
NOWHERE = torch.device("meta")


@pytest.mark.parametrize("activation", ["softmax", "regions"])
def test_no_step_waits_for_the_device(activation: str) -> None:
    changes = {"network.classes": 2} if activation == "regions" else {}
    plan = small_plan(activation=activation, **changes)
    state = new_state(plan, seed=0, device=NOWHERE)
    step_once = Stepper(state, plan, NOWHERE, parts=2)
    images, targets = Batches(CASES, plan, seed=0, device=CPU).batch(0)
    batch = (images.to(NOWHERE), replace(targets, labels=targets.labels.to(NOWHERE)))
    epoch = Epoch(2)
    for step in range(2):
        seed_step(3, step, 0)
        epoch.add(*step_once([batch, batch], 0.01, progress=0.5))
        update_average(state, 0.99)
    assert len(epoch) == 2
    # Only reading the epoch's figures needs them on the host.
    with pytest.raises((RuntimeError, NotImplementedError)):
        epoch.read()


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


@pytest.mark.parametrize(("precision", "inside"), [("fp32", torch.float32), ("auto", torch.float32),
                                                   ("bf16", torch.bfloat16)])  # fmt: skip
def test_a_step_computes_in_the_precision_of_the_plan(
    precision: str, inside: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(**{"training.precision": precision})
    state = new_state(plan, seed=0, device=CPU)
    step_once, seen = Stepper(state, plan, CPU), []
    loss_of = step_once.loss
    monkeypatch.setattr(
        step_once, "loss", lambda outputs, *a, **k: seen.append(outputs[0].dtype)
        or loss_of(outputs, *a, **k)
    )  # fmt: skip
    seed_step(3, 0, 0)
    loss, norm = step_once([Batches(CASES, plan, seed=0, device=CPU).batch(0)], 1e-3)
    assert seen == [inside]
    assert {value.dtype for value in state.network.parameters()} == {torch.float32}

    exact = small_plan(**{"training.precision": "fp32"})
    state = new_state(exact, seed=0, device=CPU)
    seed_step(3, 0, 0)
    wanted = Stepper(state, exact, CPU)([Batches(CASES, exact, seed=0, device=CPU).batch(0)], 1e-3)
    # bf16 has 8 bits of mantissa.
    close = 0.02 if inside is torch.bfloat16 else 0.0
    assert float(loss) == pytest.approx(float(wanted[0]), rel=close)
    assert float(norm) == pytest.approx(float(wanted[1]), rel=5 * close)


def test_channels_last_changes_the_order_of_memory_alone() -> None:
    found = []
    for order in ("contiguous", "channels_last"):
        plan = small_plan(**{"training.memory_format": order})
        state = new_state(plan, seed=0, device=CPU)
        step_once, batches = Stepper(state, plan, CPU), Batches(CASES, plan, seed=0, device=CPU)
        seed_step(3, 0, 0)
        loss, norm = step_once([batches.batch(0)], 1e-3)
        found.append((float(loss), float(norm)))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
