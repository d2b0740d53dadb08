"""What a helper does: make cases of a cache for the process that started it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import blosc2  # noqa: F401 - loaded now, for the first case
import torch

from medseg.core.plan import Plan
from medseg.datasets.dataset import Case, OrganMask
from medseg.io.wire import from_line
from medseg.training.cache import make_case


def serve() -> None:
    """Make the cases that :meth:`medseg.training.cache_helpers.CacheHelper.make` names.

    It ends where they are made, where one cannot be, and when the parent closes the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(1)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    homes, plan_text, key = from_line(line)
    plan = Plan.model_validate_json(plan_text)
    for fields, home in homes:
        make_case(_case(fields), plan, home, key=key)


def _case(fields: dict[str, Any]) -> Case:
    organs = tuple(OrganMask(*organ) for organ in fields["organs"])
    return Case(**fields | {"organs": organs})


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
