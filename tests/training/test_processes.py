"""Several processes learn what one with the larger batch learns."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.core.errors import Interrupted, ResourceError, SettingsError
from medseg.core.settings import Launch, launched
from medseg.training.loop import TrainJob, train_network
from medseg.training.processes import Team, device_of, team_of
from tests.training.test_loop import CPU, job

# Children are forked from a process that has loaded torch once, and has no threads.
FORKING = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
FORKING.set_forkserver_preload(["torch", "medseg.training.loop"])
pytestmark = pytest.mark.skipif(os.name == "nt", reason="gloo over TCP, forked children")

PLAN = {"training.steps_per_epoch": 1, "training.batch_size": 1}


USUAL = "dice + ce"


def learn(
    folder: Path, *, steps: int, size: int = 1, loss: str = USUAL, **changes: Any
) -> TrainJob:
    """A job whose log has a line per step: the same samples a step for any ``size``."""
    plan = {**PLAN, "training.batch_size": 2 // size, "training.loss.terms": loss}
    return job(folder, steps=steps, plan=plan, inner=[], **changes)


def member(rank: int, port: int, folder: Path, steps: int, stop_at: int, loss: str) -> None:
    """One of two processes; writes its losses. The second alone is asked to stop."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    seen: list[dict[str, Any]] = []
    with team_of(Launch(rank, 2, rank, 2), CPU) as team:
        mine = learn(folder, steps=steps, size=2, loss=loss, team=team, on_epoch=seen.append)
        done: list[int] = []
        mine = replace(
            mine,
            on_step=lambda step, share: done.append(step),
            stop=lambda: rank == 1 and bool(done) and done[-1] == stop_at,
        )
        try:
            train_network(mine)
        except Interrupted:
            seen.append({"stopped": True})
    (folder / f"seen_{rank}.json").write_text(json.dumps(seen))


def left_alone(rank: int, port: int, folder: Path) -> None:
    """One of two processes; the second dies after a step, and the first writes what it is told."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with team_of(Launch(rank, 2, rank, 2), CPU) as team:
        mine = learn(folder, steps=50, size=2, team=team)
        mine = replace(mine, stop=lambda: rank == 1 and os._exit(9))
        try:
            with team.told_of_losses():
                train_network(mine)
        except ResourceError as error:
            (folder / "told.txt").write_text(str(error))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_processes(
    folder: Path, *, steps: int, stop_at: int = -1, loss: str = USUAL
) -> list[list[dict[str, Any]]]:
    port = free_port()
    both = [
        FORKING.Process(target=member, args=(rank, port, folder, steps, stop_at, loss))
        for rank in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
    assert [one.exitcode for one in both] == [0, 0]
    return [json.loads((folder / f"seen_{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("loss", "steps"), [(USUAL, 20), ("dice + topk", 10)])
def test_two_processes_equal_one_with_twice_the_batch(
    tmp_path: Path, loss: str, steps: int
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone: list[dict[str, Any]] = []
    train_network(learn(tmp_path / "one", steps=steps, loss=loss, on_epoch=alone.append))
    first, second = two_processes(tmp_path / "two", steps=steps, loss=loss)
    assert len(alone) == len(first) == steps
    for facts, others in zip(alone, first, strict=True):
        assert facts["loss"] == pytest.approx(others["loss"], abs=1e-4)
        assert facts["gradient_norm"] == pytest.approx(others["gradient_norm"], rel=1e-2)
    # Each process knows the loss of the whole batch.
    assert [facts["loss"] for facts in first] == [facts["loss"] for facts in second]


def test_a_stop_of_one_ends_both_and_one_goes_on(tmp_path: Path) -> None:
    first, second = two_processes(tmp_path, steps=12, stop_at=7)
    assert [len(first), len(second)] == [8, 8]
    assert first[-1] == second[-1] == {"stopped": True}
    assert not list(tmp_path.glob(".medseg*"))
    alone: list[dict[str, Any]] = []
    state = train_network(learn(tmp_path, steps=12, on_epoch=alone.append))
    assert [facts["step"] for facts in alone] == [8, 9, 10, 11, 12]
    whole: list[dict[str, Any]] = []
    (tmp_path / "whole").mkdir()
    train_network(learn(tmp_path / "whole", steps=12, on_epoch=whole.append))
    for facts, others in zip(whole[7:], alone, strict=True):
        assert facts["loss"] == pytest.approx(others["loss"], abs=1e-4)
    assert state.processes == 1


def test_who_is_left_alone_says_so(tmp_path: Path) -> None:
    port = free_port()
    both = [FORKING.Process(target=left_alone, args=(rank, port, tmp_path)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [0, 9]
    told = (tmp_path / "told.txt").read_text()
    assert told.startswith("process 0 of 2: expected all processes to go on, got one that has")
    assert "--resume" in told


def test_alone_nothing_is_exchanged() -> None:
    with team_of(None, CPU) as team:
        assert team == Team(0, 1)
        sums = torch.ones(3)
        assert team.total(sums) is sums
        assert team.agree(3.5, True) == (3.5, True)
        assert team.first(lambda: 7) == 7


def test_each_process_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Launch(3, 4, 1, 2)
    assert device_of(None, "cuda:3") == "cuda:3"
    assert device_of(second, "cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(second, "auto") == "cuda:1"
    with pytest.raises(ResourceError, match="one device for all"):
        device_of(second, "cuda:0")


def test_what_torchrun_says_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launched() is None
    for name, value in {
        "TORCHELASTIC_RUN_ID": "none", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert launched() == Launch(5, 8, 1, 2, restarts=2)
    monkeypatch.setenv("RANK", "five")
    with pytest.raises(SettingsError, match="RANK"):
        launched()
