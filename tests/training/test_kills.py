"""Never lost: killed at random moments and resumed, a run ends with the very same weights."""

from __future__ import annotations

import os
import random
import signal
import threading
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseg.core.errors import Interrupted
from medseg.training.determinism import deterministic
from medseg.training.loop import train_network
from tests.training.test_loop import job, same_tensors
from tests.training.test_processes import FORKING

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")


def learn(folder: Path, steps: int, *, checkpoint_every_s: float = 300.0) -> None:
    """Train to the end, or to a SIGTERM; what is done lies in the checkpoint."""
    torch.set_num_threads(1)
    asked = threading.Event()
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    with deterministic(True):
        made = replace(
            job(folder, steps=steps, exact=True),
            checkpoint_every_s=checkpoint_every_s, stop=asked.is_set,
        )  # fmt: skip
        try:
            train_network(made)
        except Interrupted:
            return
        finally:
            signal.signal(signal.SIGTERM, before)
    (folder / "done").touch()


def started(folder: Path, steps: int) -> BaseProcess:
    process = FORKING.Process(
        target=learn, args=(folder, steps), kwargs={"checkpoint_every_s": 0.1}
    )
    process.start()
    return process


def killed_and_resumed(folder: Path, *, steps: int, kills: int, seed: int) -> list[str]:
    """Run until done; what was done to it, in order."""
    chance, heard = random.Random(seed), []
    while not (folder / "done").exists():
        process = started(folder, steps)
        if len(heard) < kills:
            process.join(chance.uniform(0.05, 1.2))
            if process.is_alive():
                number = chance.choice([signal.SIGKILL, signal.SIGTERM])
                os.kill(process.pid or 0, number)
                heard.append(number.name)
        process.join(120)
        assert not process.is_alive()
    return heard


def compare(tmp_path: Path, *, steps: int, kills: int, seed: int) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    undisturbed = FORKING.Process(target=learn, args=(tmp_path / "whole", steps))
    undisturbed.start()
    heard = killed_and_resumed(tmp_path / "killed", steps=steps, kills=kills, seed=seed)
    undisturbed.join(300)
    assert len(heard) == kills, f"done after {heard}: give it more steps"
    whole, resumed = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "killed")
    )
    assert same_tensors(whole, resumed)


def test_three_kills_and_the_same_bits(tmp_path: Path) -> None:
    compare(tmp_path, steps=150, kills=3, seed=2)


@pytest.mark.acceptance
def test_twenty_kills_and_the_same_bits(tmp_path: Path) -> None:
    compare(tmp_path, steps=1500, kills=20, seed=1)
