"""Progress for people: a bar with the time that is left, or a log line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

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
def progress_bar(title: str) -> Iterator[Advance]:
    """Show how far a piece of work is.

    Yields:
        A function of (done, total, note) to be called after each step, from any thread. Where
        stderr is no terminal it writes a log line every 30 seconds and at the end instead.
    """
    if stderr_console().is_terminal:
        with _bar(title) as advance:
            yield advance
    else:
        yield _log_lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Advance]:
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
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=stderr_console(), transient=True) as progress:
        task = progress.add_task(title, total=None, note="")

        def advance(done: int, total: int, note: str) -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield advance


def _log_lines(title: str) -> Advance:
    started = time.monotonic()
    last = started

    def advance(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LOG_EVERY_S and done < total:
            return
        last = now
        _log.info(
            "%s: %d of %d, %s left%s",
            title,
            done,
            total,
            _time_left(now - started, done, total),
            f", {note}" if note else "",
        )

    return advance


def _time_left(elapsed_s: float, done: int, total: int) -> str:
    if done <= 0:
        return "unknown time"
    left_s = round(elapsed_s / done * max(total - done, 0))
    return f"{left_s // 60}:{left_s % 60:02d} min"
