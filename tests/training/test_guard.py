"""A loss that is not finite: once back and slower, then the batch is kept."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.core.errors import Interrupted, MedsegError
from medseg.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from medseg.training.epoch import Epoch
from medseg.training.loop import train_network
from medseg.training.step import new_state
from tests.training.test_loop import CPU, job, same_tensors, stopping


def breaking(state: TrainState, at: list[int]) -> object:
    """An ``on_step`` that spoils a weight after the first of the steps, once for each."""

    def on_step(step: int, share: float) -> None:
        if at and step == at[0]:
            at.pop(0)
            with torch.no_grad():
                next(iter(state.network.parameters())).fill_(float("nan"))

    return on_step


def test_the_first_time_it_goes_back_and_on_at_half_the_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = job(tmp_path).plan
    state = new_state(plan, seed=3, device=CPU)
    (tmp_path / "broken").mkdir()
    broken = job(tmp_path / "broken", on_step=breaking(state, [6]))
    with caplog.at_level(logging.WARNING, logger="medseg"):
        result = train_network(broken, state)
    assert "step 6 is not finite: back to step 4, with 0.5" in caplog.text
    assert result.step == 12
    assert not (tmp_path / "broken" / "failed_batch").exists()
    # The same bits as a run that was told at step 4 to go on at half the rate.
    (tmp_path / "told").mkdir()
    with pytest.raises(Interrupted):
        train_network(stopping(job(tmp_path / "told"), after=4))
    told = new_state(plan, seed=3, device=CPU)
    load_checkpoint(tmp_path / "told" / "checkpoint.safetensors", told, CPU, exact=True)
    told.rate_scale = 0.5
    save_checkpoint(tmp_path / "told" / "checkpoint.safetensors", told, CPU)
    expected = train_network(job(tmp_path / "told"))
    assert same_tensors(result.network.state_dict(), expected.network.state_dict())
    assert same_tensors(result.average.state_dict(), expected.average.state_dict())


def test_the_second_time_it_stops(tmp_path: Path) -> None:
    state = new_state(job(tmp_path).plan, seed=3, device=CPU)
    with pytest.raises(MedsegError, match=r"step 9, again .*learning_rate"):
        train_network(job(tmp_path, on_step=breaking(state, [6, 9])), state)
    kept = json.loads((tmp_path / "failed_batch" / "batch.json").read_text())
    assert kept["step"] == 9
    assert all(sample["finite"] for sample in kept["samples"])


def test_a_scan_without_meaning_is_named_and_its_batch_kept(tmp_path: Path) -> None:
    # Three cases and two samples a step: the first step that sees case 1 fails, both times.
    broken = job(tmp_path, steps=8, checkpoint_every_s=0.0)
    broken.cases[1].image[:] = float("inf")
    with pytest.raises(MedsegError, match=r"failed_batch.*mend the scan of case 1"):
        train_network(broken)
    folder = tmp_path / "failed_batch"
    assert sorted(path.name for path in folder.iterdir()) == [
        "batch.json", "images.npy", "labels.npy",
    ]  # fmt: skip
    images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    assert images.shape == (2, 1, 16, 12, 8)
    assert labels.shape == (2, 16, 12, 8)
    facts = json.loads((folder / "batch.json").read_text())
    finite = [bool(np.isfinite(image).all()) for image in images]
    assert [sample["finite"] for sample in facts["samples"]] == finite
    assert {s["case"] for s in facts["samples"] if not s["finite"]} == {"case 1"}
    # A checkpoint was due at each step, but none of a broken state was written.
    state = new_state(broken.plan, seed=3, device=CPU)
    if broken.checkpoint.is_file():
        load_checkpoint(broken.checkpoint, state, CPU, exact=False)
    assert all(bool(value.isfinite().all()) for value in state.network.state_dict().values())


def test_a_gradient_that_is_not_finite_is_a_fault_where_no_step_is_skipped() -> None:
    one, bad = torch.ones(()), torch.tensor(float("inf"))
    for skips, fault in ((False, 1), (True, None)):
        epoch = Epoch(2, skips=skips)
        epoch.add(one, one)
        epoch.add(one, bad)
        assert epoch.first_fault() == fault
        assert len(epoch) == 2
    epoch.add(bad, one)
    assert epoch.first_fault() == 2


def test_a_stop_within_a_broken_epoch_keeps_the_former_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train_network(stopping(job(tmp_path), after=4))
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    state = new_state(job(tmp_path).plan, seed=3, device=CPU)
    broken = job(tmp_path, on_step=breaking(state, [5]))
    done: list[int] = []

    def on_step(step: int, share: float) -> None:
        broken.on_step(step, share)
        done.append(step)

    with pytest.raises(Interrupted):
        train_network(replace(broken, on_step=on_step, stop=lambda: done[-1] == 7), state)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
