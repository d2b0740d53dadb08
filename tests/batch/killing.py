"""Runs batches in children that are killed at random moments; says what was left of each.

Run as a program, so that the libraries are loaded once for all children:
``python -m tests.batch.killing PACKAGE SCANS OUT ROUNDS SHARDS``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from medseg.batch.ledger import read_ledger
from medseg.batch.local import BatchOptions, predict_batch


def main() -> None:
    package, scans, out = (Path(argument) for argument in sys.argv[1:4])
    rounds, shards = (int(argument) for argument in sys.argv[4:6])
    chance = random.Random(shards)
    started = time.monotonic()
    assert wait([start(package, scans, out / "whole", None)]) == [0]
    whole_s = time.monotonic() - started
    expected = digests(out / "whole")
    reports = []
    for number in range(rounds):
        folder = out / str(number)
        names = [f"{n}/{shards}" for n in range(1, shards + 1)] if shards > 1 else [None]
        children = [start(package, scans, folder, name) for name in names]
        time.sleep(chance.uniform(0.0, whole_s / shards))
        os.kill(children[0], signal.SIGKILL)
        codes = wait(children)
        there = digests(folder)
        killed = {
            "code": codes[0],
            "there": sum(name.endswith(".nii.gz") for name in there),
            # A sidecar may stand there before its mask, whole.
            "wrong": [name for name, digest in there.items() if expected[name] != digest],
        }
        again = wait([start(package, scans, folder, name) for name in names])
        reports.append(
            {
                **killed,
                "others": codes[1:],
                "again": again,
                "equal": digests(folder) == expected,
                "ledger": states(folder),
                "unfinished": sorted(
                    p.name for p in folder.rglob(".medseg-*") if p.name != ".medseg"
                ),
            }
        )
    sys.stdout.write(json.dumps(reports))


def start(package: Path, scans: Path, out: Path, shard: str | None) -> int:
    """Run a batch in a child; gives its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        batch = BatchOptions(shard=shard)
        predict_batch(package, scans, out, device="cpu", backend="torch", batch=batch)
        code = 0
    finally:
        os._exit(code)


def wait(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def digests(out: Path) -> dict[str, str]:
    """Hashes of the masks and sidecars, by name."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.glob("**/c*")
        if path.is_file()
    }


def states(out: Path) -> dict[str, list[str]]:
    """What the ledgers say of each case, where its files are those that are written down."""
    found: dict[str, list[str]] = {}
    there = digests(out)
    for path in sorted((out / ".medseg").glob("ledger*.sqlite")):
        for case, entry in read_ledger(path).items():
            agrees = entry.facts["files"].items() <= there.items()
            found.setdefault(case, []).append(entry.state if agrees else "other files")
    return found


if __name__ == "__main__":
    main()
