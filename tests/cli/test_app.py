from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer

from medseg import __version__
from medseg.cli.app import app, run
from medseg.core.errors import FileError, Interrupted

COMMANDS = [command.name for command in app.registered_commands]


@pytest.fixture
def info_does(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace what ``medseg info`` calls."""

    def replace(action: Any) -> None:
        monkeypatch.setattr("medseg.workflows.info.info", action)

    return replace


def failing(error: BaseException) -> Any:
    def fail(path: Path) -> None:
        raise error

    return fail


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"medseg {__version__}\n"


def test_help_tells_what_it_must(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "research use only" in text
    for name in COMMANDS:
        assert str(name) in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"Example: medseg {name}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["info"], ["info", "a", "--nope"]])
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_error_of_the_user(info_does: Any, capsys: pytest.CaptureFixture[str]) -> None:
    info_does(failing(FileError("x.nii.gz", expected="a scan", got="nothing", cure="Give one.")))
    assert run(["info", "x.nii.gz"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: x.nii.gz: expected a scan, got nothing. Give one.\n"
    assert captured.out == ""


def test_fault_of_ours(info_does: Any, capsys: pytest.CaptureFixture[str]) -> None:
    info_does(failing(ValueError("two\nlines")))
    assert run(["info", "x"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ValueError: two lines (this is a fault of medseg")
    assert "--debug" in told
    assert "Traceback" not in told
    assert run(["--debug", "info", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_some_failed(info_does: Any) -> None:
    info_does(failing(typer.Exit(3)))
    assert run(["info", "x"]) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("stopped; state is kept")])
def test_stopped(error: BaseException, info_does: Any) -> None:
    info_does(failing(error))
    assert run(["info", "x"]) == 130


@pytest.mark.filterwarnings("always:for developers")
def test_log_goes_to_stderr(info_does: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def speak(path: Path) -> dict[str, str]:
        logging.getLogger("medseg.somewhere").info("a line of the log")
        logging.getLogger("medseg.somewhere").debug("a detail")
        warnings.warn("for developers", stacklevel=1)
        return {"kind": "scan"}

    info_does(speak)
    assert run(["info", "x"]) == 0
    captured = capsys.readouterr()
    assert "a line of the log" in captured.err
    assert "a detail" not in captured.err
    assert "for developers" not in captured.err
    assert captured.out.split() == ["kind", "scan"]
    assert run(["--verbose", "info", "x"]) == 0
    told = capsys.readouterr().err
    assert "a detail" in told
    assert "for developers" in told


def environment(repository: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repository)}


def test_ctrl_c_from_outside(repository: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = (
        "import time, sys, pathlib\n"
        "import medseg.workflows.info as room\n"
        "def wait(path):\n"
        f"    pathlib.Path({str(started)!r}).touch()\n"
        "    time.sleep(30)\n"
        "room.info = wait\n"
        "from medseg.cli.app import run\n"
        "sys.exit(run(['info', 'x']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(repository), stderr=subprocess.PIPE
    )
    for _ in range(200):
        if started.exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in told


def test_as_a_module(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medseg", "info", "no_such_file.nii.gz"],
        env=environment(repository),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
