"""What all tests share: real data and GPU tests where they can be had, one thread, fixed chance."""

from __future__ import annotations

import os

# Two test processes on two cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

_ROOT = Path(__file__).parents[1]

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them press.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("medseg", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("medseg")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Find a folder of real scans by name; the test is skipped where it is absent.

    They lie in the folder that MEDSEG_TEST_DATA names, else in ``shared/data`` beside the
    project, and are no part of it.
    """
    root = Path(os.environ.get("MEDSEG_TEST_DATA", _ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real data '{name}' is not here (see MEDSEG_TEST_DATA)")
        return root / name

    return find


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's top folder."""
    return _ROOT


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither use nor fill the cache of the user; processes that they start inherit it."""
    os.environ["MEDSEG_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _fixed_chance() -> None:
    # For third-party code alone: ours takes its seed as an argument.
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """Undo what the command line does to the log, so that the next test sees its warnings."""
    log = logging.getLogger("medseg")
    before = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])
    logging.captureWarnings(False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``gpu`` where CUDA is not there."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
