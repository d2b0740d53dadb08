"""The whole command, killed at random moments of any phase; and torchrun. Long: acceptance."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.phantoms import write_msd_dataset
from tests.workflows.test_train import weights

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows"),
]
STEPS = 400


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msd_dataset(tmp_path_factory.mktemp("data") / "msd", cases=8)


def options(dataset: Path, out: Path) -> list[str]:
    return [
        "-m", "medseg", "train", str(dataset), "--out", str(out), "--epochs", str(STEPS // 10),
        "--deterministic", "--seed", "5", "--device", "cpu", "--checkpoint-every", "0.5s",
        "--set", "base_features=4", "--set", "plan.training.steps_per_epoch=10",
        "--set", "plan.patch_size=[16,16,8]",
    ]  # fmt: skip


def start(*command: str, out: Path) -> subprocess.Popen[bytes]:
    """Begin, or go on where something is there."""
    more = ["--resume"] if (out / "run.json").is_file() else []
    return subprocess.Popen(
        [sys.executable, *command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_twenty_kills_of_the_command(dataset: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.perf_counter()
    first = start(*options(dataset, whole), out=whole)
    _, errors = first.communicate(timeout=600)
    assert first.returncode == 0, errors.decode()
    took, chance = time.perf_counter() - began, random.Random(7)
    heard: list[str] = []
    while len(heard) < 20:
        process = start(*options(dataset, killed), out=killed)
        try:
            # Each start loads what it needs first; then any phase may be hit.
            _, errors = process.communicate(timeout=chance.uniform(0.2, 0.9) * took)
            assert process.returncode == 0, errors.decode()
            break
        except subprocess.TimeoutExpired:
            number = chance.choice([signal.SIGKILL, signal.SIGTERM])
            process.send_signal(number)
            process.communicate(timeout=120)
            heard.append(number.name)
    last = start(*options(dataset, killed), out=killed)
    _, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors.decode()
    assert weights(killed) == weights(whole), heard
    assert not [path for path in killed.rglob(".medseg-*") if path.is_file()]


def torchrun(dataset: Path, out: Path, *, restarts: int = 0) -> subprocess.Popen[bytes]:
    return start(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        f"--max-restarts={restarts}", *options(dataset, out)[0:], out=out,
    )  # fmt: skip


def test_two_processes_by_torchrun(dataset: Path, tmp_path: Path) -> None:
    process = torchrun(dataset, tmp_path / "run")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(10, STEPS + 1, 10))
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["step_size"] == 2 * kept["plan"]["training"]["batch_size"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_torchrun_starts_anew_what_died(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = torchrun(dataset, out, restarts=2)
    checkpoint = out / "checkpoint.safetensors"
    while not checkpoint.is_file() and process.poll() is None:
        time.sleep(0.05)
    import psutil

    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 2
    workers[1].kill()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    log = (out / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == STEPS
