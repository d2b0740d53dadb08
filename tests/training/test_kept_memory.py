"""Memory between steps: what the system counts is what tells."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from medseg.training.kept_memory import freed_memory_kept

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told"
)
_BLOCK = 48 << 20
_PAGES = _BLOCK // resource.getpagesize()


def _faults_of_ten_blocks() -> int:
    """Page faults while a block is made, written and freed ten times over.

    Before that the heap settles: an aligned block is cut from a slightly larger one, so that the
    first few freed ones are too small for the next.
    """
    for _ in range(20):
        torch.ones(_BLOCK // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(_BLOCK // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_blocks_come_back_without_page_faults() -> None:
    with freed_memory_kept("cpu"):
        kept = _faults_of_ten_blocks()
    assert kept < _PAGES < _faults_of_ten_blocks()


def test_on_a_gpu_nothing_changes() -> None:
    with freed_memory_kept("cuda"):
        assert _faults_of_ten_blocks() > _PAGES


def test_the_memory_goes_back_at_the_end() -> None:
    before = _resident_bytes()
    with freed_memory_kept("cpu"):
        torch.ones(4 * _BLOCK // 4)
        held = _resident_bytes()
    assert held - before > 3 * _BLOCK
    assert _resident_bytes() - before < _BLOCK
