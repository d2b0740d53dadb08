"""Checking a dataset: medseg against nnU-Net's dataset verification, whole processes.

    python benchmarks/check_dataset.py DATASET --peer PYTHON [--rounds 3]

PYTHON is the interpreter of an environment with nnunetv2. The dataset is first converted to
nnU-Net's layout, so that both read the same files; nnU-Net's side is its
``verify_dataset_integrity`` alone (no fingerprint), with as many processes as there are
cores. The two run in turn, and the medians are compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_PEER = (
    "import sys; from nnunetv2.experiment_planning.verify_dataset_integrity import "
    "verify_dataset_integrity as verify; verify(sys.argv[1], num_processes=int(sys.argv[2]))"
)


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of a process; it must find nothing wrong with the command itself."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    took = time.perf_counter() - started
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(command[:4])}: {(done.stderr or done.stdout)[-500:]}")
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--peer", required=True, help="python of an environment with nnunetv2")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    medseg = [sys.executable, "-m", "medseg"]
    cores = str(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "Dataset001_Check"
        environment = {
            **os.environ, "nnUNet_raw": folder, "nnUNet_preprocessed": folder,
            "nnUNet_results": folder,
        }  # fmt: skip
        convert = [*medseg, "convert", str(options.dataset), "--to", "nnunet", "--out", str(raw)]
        seconds(convert, environment)
        ours, theirs = [], []
        for _ in range(options.rounds):
            ours.append(seconds([*medseg, "check", str(raw)], environment))
            theirs.append(seconds([options.peer, "-c", _PEER, str(raw), cores], environment))
    mine, peer = statistics.median(ours), statistics.median(theirs)
    print(f"check: nnU-Net's verification {peer:.1f} s, medseg check {mine:.1f} s, "
          f"ratio {peer / mine:.2f} (medians of {options.rounds})")  # fmt: skip


if __name__ == "__main__":
    main()
