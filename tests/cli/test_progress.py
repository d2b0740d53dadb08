from __future__ import annotations

import logging
import time

import pytest
from rich.console import Console

from medseg.cli import progress
from medseg.cli.progress import progress_bar


def test_no_terminal_gives_log_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 31.0, 32.0, 40.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="medseg"), progress_bar("predict") as advance:
        advance(1, 4, "case_a")
        advance(2, 4, "case_b")
        advance(3, 4, "case_c")
        advance(4, 4, "")
    assert [record.getMessage() for record in caplog.records] == [
        "predict: 2 of 4, 0:31 min left, case_b",
        "predict: 4 of 4, 0:00 min left",
    ]


def test_terminal_gives_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(stderr=True, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "stderr_console", lambda: console)
    with progress_bar("predict") as advance:
        advance(1, 2, "[case]")
        advance(2, 2, "[case]")
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    assert "[case]" in captured.err
    assert captured.out == ""
