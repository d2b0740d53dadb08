"""Ask torch for the same result every time, for as long as a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms within the block; what was set before comes back after it.

    On CUDA an operation that has no deterministic form warns instead of failing.
    """
    if not wanted:
        yield
        return
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def chance_of_its_own(device: torch.device) -> Iterator[None]:
    """Random numbers of torch that are drawn in the block leave those outside as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def seed_step(seed: int, step: int, process: int) -> None:
    """Make what chance decides inside a network (dropout) a function of the step.

    So no state of a random generator needs to be kept: any step can be run again.
    """
    words = np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))
