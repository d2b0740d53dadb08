"""Checking a dataset: medseg against nnU-Net's dataset verification, from start to answer.

    python benchmarks/check_dataset.py DATASET --peer PYTHON [--rounds 3]

PYTHON is the interpreter of an environment with nnunetv2. The dataset is first converted to
nnU-Net's layout, so that both read the same files. nnU-Net's side is the command that its
users type, ``nnUNetv2_plan_and_preprocess --verify_dataset_integrity``, timed until it says
that the verification is done: the fingerprint that follows is left out. Both use as many
processes or threads as there are cores; they run in turn, and the medians are compared.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_DONE = "verify_dataset_integrity Done"


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of a process that ends by itself."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    took = time.perf_counter() - started
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(command[:4])}: {(done.stderr or done.stdout)[-500:]}")
    return took


def seconds_until(command: list[str], environment: dict[str, str], line: str) -> float:
    """Wall time of a process until it prints a line; it is ended then."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = []
        for text in process.stdout:
            said.append(text)
            if line in text:
                took = time.perf_counter() - started
                os.killpg(process.pid, signal.SIGKILL)
                return took
    raise RuntimeError(f"'{line}' was never said: {''.join(said)[-500:]}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--peer", required=True, help="python of an environment with nnunetv2")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    medseg = [sys.executable, "-m", "medseg"]
    cores = str(os.cpu_count() or 1)
    command = str(Path(options.peer).with_name("nnUNetv2_plan_and_preprocess"))
    verify = [command, "-d", "1", "--verify_dataset_integrity", "-npfp", cores, "--no_pp"]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "Dataset001_Check"
        environment = {
            **os.environ, "nnUNet_raw": folder, "nnUNet_preprocessed": folder,
            "nnUNet_results": folder, "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        convert = [*medseg, "convert", str(options.dataset), "--to", "nnunet", "--out", str(raw)]
        seconds(convert, environment)
        ours, theirs = [], []
        for _ in range(options.rounds):
            ours.append(seconds([*medseg, "check", str(raw)], environment))
            theirs.append(seconds_until(verify, environment, _DONE))
    mine, peer = statistics.median(ours), statistics.median(theirs)
    print(f"check: nnU-Net's verification {peer:.1f} s, medseg check {mine:.1f} s, "
          f"ratio {peer / mine:.2f} (medians of {options.rounds})")  # fmt: skip


if __name__ == "__main__":
    main()
