"""Processes that make cases of a cache beside this one.

More than half of the work on a small case is Python's own, at which threads take turns. A helper
is a process of its own that makes cases of the same cache, under the same locks
(:mod:`medseg.training.cache_turns`), from other places of the list. It tells nothing: a case that
it could not make is made by this process, which meets the same fault and says so.

Loading what it needs takes a helper as long as it takes this process. So one that is started
before anything else was loaded is ready when the first case is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from medseg.core.plan import Plan
    from medseg.datasets.dataset import Case

# Cases for which another helper pays: it takes seconds to start, a small case hundredths.
_CASES_EACH = 300
# The path of the parent, and nothing of the folder in which it was started.
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from medseg.training.cache_service import serve; serve()"
)


class CacheHelper:
    """A process that makes cases when it is told to.

    Contract: use it with ``with``: it starts to load at once, and ends with the block, also in
    the middle of a case. It ends by itself where this process dies.
    """

    def __init__(self) -> None:
        # As for readers: no fork, which would copy locks, and no second run of a user's script.
        command = [sys.executable, "-P", "-c", _START, json.dumps(sys.path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """End it now; of a case that it was at nothing is kept. It may have ended before."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def make(self, homes: Sequence[tuple[Case, Path]], plan: Plan, *, key: str) -> None:
        """Let it make cases, in this order, as far as nobody else makes them.

        Args:
            homes: Each case, and the folder that it goes to.
            plan: How.
            key: Of the plan.
        """
        from medseg.io.wire import to_line

        line = to_line([[(_fields(case), home) for case, home in homes], plan.to_json(), key])
        # It may still be loading, and a pipe holds little.
        threading.Thread(target=self._send, args=(line,), daemon=True).start()

    def _send(self, line: bytes) -> None:
        with suppress(OSError, ValueError):  # it has ended, or the block has
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()


@contextmanager
def one_early() -> Iterator[tuple[CacheHelper, ...]]:
    """A helper that loads while this process does; none where there is one core."""
    if (os.cpu_count() or 1) < 2:
        yield ()
        return
    with CacheHelper() as helper:
        yield (helper,)


@contextmanager
def helped(
    homes: Sequence[tuple[Case, Path]],
    plan: Plan,
    *,
    key: str,
    at_once: int,
    helpers: Sequence[CacheHelper] = (),
) -> Iterator[int]:
    """Helpers at work on the cases of a cache, those that are there and as many more as pay.

    Args:
        homes: The cases that are to be made, and their folders.
        plan: How.
        key: Of the plan.
        at_once: Cases that may be made at a time.
        helpers: That were started before. They end with the block, like the others.

    Yields:
        How many cases this process may make at a time.
    """
    with ExitStack() as stack:
        ready = [*helpers][: at_once - 1]
        for _ in range(len(ready), min(at_once - 1, len(homes) // _CASES_EACH)):
            ready.append(CacheHelper())
        for helper in ready:
            stack.callback(helper.end)
        backwards = homes[::-1]
        for number, helper in enumerate(ready):
            # Each begins at a place of its own; this process begins at the front.
            start = number * len(homes) // len(ready)
            helper.make([*backwards[start:], *backwards[:start]], plan, key=key)
        yield at_once - len(ready)


def _fields(case: Case) -> dict[str, Any]:
    return vars(case) | {"organs": tuple((organ.value, organ.path) for organ in case.organs)}
