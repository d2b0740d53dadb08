"""Memory between steps: what the system counts is what tells, in a process of its own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

# Blocks are made, written and freed again and again. An aligned block is cut from a slightly
# larger one, so that the first few freed ones are too small for the next: the heap settles.
_SCRIPT = """
import json, resource, torch
from pathlib import Path
from medseg.training.kept_memory import freed_memory_kept

page, block = resource.getpagesize(), 48 << 20

def faults(block=block):
    for _ in range(20):
        torch.ones(block // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(block // 4)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * page / block

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * page / block

torch.ones(block // 4)
found = {"before": resident()}
with freed_memory_kept("cuda"):
    found["faults on a gpu"] = faults()
with freed_memory_kept("cpu", spacious=False):
    found["faults of large blocks"] = faults()
    found["faults of small blocks"] = faults(16 << 20)
with freed_memory_kept("cpu"):
    with freed_memory_kept("cpu"):
        found["faults"] = faults()
    found["faults after an inner block"] = faults()
    torch.ones(4 * block // 4)
    found["held"] = resident()
found["after"] = resident()
print(json.dumps(found))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told what to keep"
)
def test_blocks_are_taken_again_and_go_back_at_the_end() -> None:
    told = subprocess.run(
        [sys.executable, "-c", _SCRIPT], check=True, capture_output=True, text=True
    )
    # In blocks: ten were made, and each is new to the process unless it was kept.
    found = json.loads(told.stdout)
    assert found["faults on a gpu"] > 9
    assert found["faults of large blocks"] > 9
    assert found["faults of small blocks"] < 1
    assert found["faults"] < 1
    assert found["faults after an inner block"] < 1
    assert found["held"] - found["before"] > 3
    assert found["after"] - found["before"] < 1
