"""The loop learns, stops, goes on, and goes on to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medseg.core.errors import FileError, InputError, Interrupted, OutputError
from medseg.training import checkpoint
from medseg.training.checkpoint import load_checkpoint, save_checkpoint
from medseg.training.determinism import deterministic
from medseg.training.loader import Batches
from medseg.training.looks import LOOKS, is_due
from medseg.training.loop import TrainJob, train_network
from medseg.training.losses import SegmentationLoss
from medseg.training.schedule import Schedule
from medseg.training.step import Stepper, new_state
from tests.models import small_plan
from tests.training.test_loader import cached

CPU = torch.device("cpu")


def job(folder: Path, steps: int = 12, **changes: Any) -> TrainJob:
    plan = small_plan(**changes.pop("plan", {}))
    cases = [cached(n) for n in range(4)]
    made = TrainJob(
        plan=plan, cases=cases[:3], inner=cases[3:], schedule=Schedule(steps), seed=3,
        device=CPU, checkpoint=folder / "checkpoint.safetensors",
    )  # fmt: skip
    return replace(made, **changes)


def stopping(whole: TrainJob, *, after: int) -> TrainJob:
    """The same job, asked to stop after a step."""
    done: list[int] = []
    return replace(
        whole, on_step=lambda step, share: done.append(step), stop=lambda: done[-1] == after
    )


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_falls_and_the_inner_case_is_found(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    plan = {"training.ema_decay": 0.9, "training.steps_per_epoch": 20}
    state = train_network(job(tmp_path, steps=240, plan=plan, on_epoch=seen.append))
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]
    assert state.best_score > 0.8
    assert seen[-1]["dice"].keys() == {"low", "high"}
    assert [facts["step"] for facts in seen] == list(range(20, 241, 20))


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "muon"])
def test_stop_and_resume_is_bit_equal(tmp_path: Path, optimiser: str) -> None:
    plan = {"training.optimiser": optimiser}
    with deterministic(True):
        whole = train_network(job(tmp_path / "whole", plan=plan, exact=True))
        for stop_at in (2, 4, 7):
            folder = tmp_path / f"stopped {stop_at}"
            folder.mkdir()
            with pytest.raises(Interrupted, match=f"step {stop_at}"):
                train_network(stopping(job(folder, plan=plan, exact=True), after=stop_at))
            resumed = train_network(job(folder, plan=plan, exact=True))
            assert resumed.step == whole.step == 12
            assert same_tensors(whole.network.state_dict(), resumed.network.state_dict())
            assert whole.best is not None
            assert resumed.best is not None
            assert same_tensors(whole.best, resumed.best)
            assert whole.best_score == resumed.best_score


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    first = train_network(job(tmp_path / "a", steps=2))
    other = train_network(replace(job(tmp_path / "b", steps=2), seed=4))
    assert not same_tensors(first.network.state_dict(), other.network.state_dict())


def test_resume_refuses_another_environment_only_when_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_network(job(tmp_path, steps=2))
    here = checkpoint.environment(CPU)
    monkeypatch.setattr(checkpoint, "environment", lambda device: {**here, "threads": "97"})
    with pytest.raises(InputError, match="threads"):
        train_network(job(tmp_path, steps=4, exact=True))
    assert train_network(job(tmp_path, steps=4)).step == 4


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    state = new_state(small_plan(), seed=0, device=CPU)
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(FileError, match="without --resume"):
        load_checkpoint(path, state, CPU, exact=False)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(FileError, match="medseg checkpoint"):
        load_checkpoint(path, state, CPU, exact=False)
    save_checkpoint(path, new_state(small_plan(dims=2), seed=0, device=CPU), CPU)
    with pytest.raises(FileError, match="plan"):
        load_checkpoint(path, state, CPU, exact=False)


def test_a_full_disk_keeps_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_network(job(tmp_path, steps=2))
    path = tmp_path / "checkpoint.safetensors"
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        train_network(job(tmp_path, steps=4))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors"]


def test_the_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    train_network(job(tmp_path, steps=2))
    names = load_file(tmp_path / "checkpoint.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"network", "average", "optimiser"} | (
        {"best"} if any(n.startswith("best") for n in names) else set()
    )


def test_without_inner_cases_the_last_weights_are_kept(tmp_path: Path) -> None:
    state = train_network(job(tmp_path, steps=8, inner=[]))
    assert state.best is not None
    assert same_tensors(state.best, dict(state.average.state_dict()))


def test_looks_are_spread_and_end_with_the_run() -> None:
    assert LOOKS[-1] == 1.0
    assert sorted(LOOKS) == list(LOOKS)
    assert is_due(0.0, 0.3)
    assert not is_due(0.3, 0.49)


def test_a_run_made_longer_looks_again_and_ends_with_its_new_length(tmp_path: Path) -> None:
    train_network(job(tmp_path, steps=8))
    seen: list[dict[str, Any]] = []
    state = train_network(job(tmp_path, steps=16, on_epoch=seen.append))
    assert [facts["step"] for facts in seen] == [12, 16]
    assert "dice" in seen[-1]
    # The rate is that of a run of 16 steps: the last one's is lower than the first one's.
    assert seen[-1]["learning_rate"] < seen[0]["learning_rate"] < 0.01
    assert [facts["step"] for facts in state.history] == [4, 8, 12, 16]


def test_batches_whose_gradients_add_up_equal_one_large_batch(tmp_path: Path) -> None:
    # Cross-entropy alone: Dice is of the samples that are in memory at once.
    terms = {"training.loss": {"terms": [{"name": "cross_entropy"}]}}
    small = {**terms, "training.batch_size": 1}
    large = {**terms, "training.batch_size": 4}
    whole = train_network(job(tmp_path / "a", steps=6, plan=large))
    added = train_network(job(tmp_path / "b", steps=6, plan=small, parts=4))
    for facts, others in zip(whole.history, added.history, strict=True):
        assert facts["loss"] == pytest.approx(others["loss"], abs=1e-5)
        assert facts["gradient_norm"] == pytest.approx(others["gradient_norm"], rel=1e-4)


def test_the_gradient_norm_is_that_of_autograd(tmp_path: Path) -> None:
    plan = small_plan()
    state = new_state(plan, seed=3, device=CPU)
    images, targets = Batches([cached(0)], plan, seed=1, device=CPU).batch(0)
    loss, norm = Stepper(state, plan, CPU)([(images, targets)], 0.0)
    fresh = new_state(plan, seed=3, device=CPU).network
    outputs = fresh(images)
    expected = SegmentationLoss(plan, CPU)(outputs, targets)
    gradients = torch.autograd.grad(expected, list(fresh.parameters()))
    expected = expected.detach()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(norm) == pytest.approx(
        float(sum((g**2).sum() for g in gradients) ** 0.5), rel=1e-4
    )


def test_chance_in_the_network_leaves_that_outside_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train_network(job(tmp_path, steps=2))
    assert torch.equal(torch.rand(3), expected)
