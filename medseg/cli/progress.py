"""Progress for people: a bar with the time that is left, or a log line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int, int, str], None]

_LOG_EVERY_S = 30.0
_log = logging.getLogger(__name__)


@cache
def stderr_console() -> Console:
    """The one console on stderr: bars and log lines share it, so that neither breaks the other."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress_bar(title: str, *, unit: str = "") -> Iterator[Advance]:
    """Show how far a piece of work is.

    Args:
        title: Of the work.
        unit: What is counted; then how many are done in a minute is shown too. What the first
            call says is done counts as there from before.

    Yields:
        A function of (done, total, note) to be called after each step, from any thread. Where
        stderr is no terminal it writes a log line every 30 seconds and at the end instead.
    """
    if stderr_console().is_terminal:
        with _bar(title, unit) as advance:
            yield advance
    else:
        yield _log_lines(title, unit)


@contextmanager
def phase_bars(titles: dict[str, str]) -> Iterator[Callable[[str, int, int, str], None]]:
    """One progress bar after another, a new one at each new phase.

    Args:
        titles: By phase; a phase without one is called by its name.
    """
    with ExitStack() as stack:
        current: dict[str, Any] = {}

        def report(phase: str, done: int, total: int, note: str) -> None:
            if phase not in current:
                stack.close()
                current.clear()
                current[phase] = stack.enter_context(progress_bar(titles.get(phase, phase)))
            current[phase](done, total, note)

        yield report


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    pace = _Pace(unit, time.monotonic())
    with Progress(*columns, console=stderr_console(), transient=True) as progress:
        task = progress.add_task(title, total=None, note="", speed="")

        def advance(done: int, total: int, note: str) -> None:
            pace.at(done, time.monotonic())
            progress.update(task, completed=done, total=total, note=note, speed=pace.speed)

        yield advance


def _log_lines(title: str, unit: str) -> Advance:
    last = time.monotonic()
    pace = _Pace(unit, last)

    def advance(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        pace.at(done, now)
        if now - last < _LOG_EVERY_S and done < total:
            return
        last = now
        parts = [f"{done} of {total}", f"{pace.left(total)} left", pace.speed, note]
        _log.info("%s: %s", title, ", ".join(part for part in parts if part))

    return advance


class _Pace:
    """How fast the work goes, without what was done before it began."""

    def __init__(self, unit: str, started_s: float) -> None:
        self._unit, self._started_s = unit, started_s
        self._before: int | None = None
        self._steps = self._done = 0
        self._elapsed_s = 0.0

    def at(self, done: int, now_s: float) -> None:
        if self._before is None:
            # Callers with no unit count from nothing, and call after their first step.
            self._before = done if self._unit else 0
        self._done, self._steps = done, done - self._before
        self._elapsed_s = max(now_s - self._started_s, 1e-6)

    @property
    def speed(self) -> str:
        if not self._unit or not self._steps:
            return ""
        per_minute = 60 * self._steps / self._elapsed_s
        return f"{per_minute:.{0 if per_minute >= 10 else 1}f} {self._unit}/min"

    def left(self, total: int) -> str:
        if not self._steps:
            return "unknown time"
        left_s = round(self._elapsed_s / self._steps * max(total - self._done, 0))
        return f"{left_s // 60}:{left_s % 60:02d} min"
