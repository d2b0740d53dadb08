"""``medseg cache``: what lies there, what goes, and what stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.cli.app import run
from medseg.core.errors import InputError
from medseg.workflows import plan as planning
from medseg.workflows.cache import build, clean, listing
from tests.phantoms import write_msd_dataset

_HOLD = """
import sys
from pathlib import Path
from medseg.io.lock import Lock
held = Lock.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    data = write_msd_dataset(tmp_path / "data", cases=4)
    for name in ("one", "two"):
        build(data, tmp_path / "runs" / name, device="cpu", set=["base_features=4"])
    return tmp_path / "runs"


def test_list_and_clean(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listing(runs)
    assert [(row["folder"], row["cases"], row["damaged"]) for row in rows] == [
        (str(runs / name / "cache"), 4, 0) for name in ("one", "two")
    ]
    on_disk = sum(f.stat().st_size for f in (runs / "one/cache").rglob("*") if f.is_file())
    assert rows[0]["bytes"] == on_disk
    assert run(["cache", "list", str(runs / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows[:1]
    other = runs / "one/cache/notes.txt"
    other.write_text("mine")
    assert run(["cache", "clean", str(runs / "one"), "--yes"]) == 0
    assert "4 cases removed" in capsys.readouterr().out
    assert [row["folder"] for row in listing(runs)] == [str(runs / "two/cache")]
    assert other.is_file()
    assert (runs / "one/plan.json").is_file()
    assert clean(runs / "two") == {"cases": 4, "bytes": rows[1]["bytes"]}
    assert not (runs / "two/cache").exists()
    assert clean(runs)["cases"] == 0


def test_precision_is_left_to_the_machine_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=4)
    monkeypatch.setattr(planning, "bf16_pays", lambda device: True)
    monkeypatch.setattr(planning, "bf16_gain", lambda: 2.0)
    settings = {"device": "cpu", "set": ["base_features=4"]}
    assert planning.plan(data, **settings)["plan"]["training"]["precision"] == "bf16"
    build(data, tmp_path / "run", **settings)
    made = json.loads((tmp_path / "run/plan.json").read_text())
    assert made["training"]["precision"] == "auto"


def test_clean_asks_before_it_removes(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "clean", str(runs)]) != 0  # nobody answers
    assert len(listing(runs)) == 2
    assert run(["cache", "list", str(runs)]) == 0
    assert "runs" in " ".join(capsys.readouterr().out.split())


def test_clean_refuses_while_a_run_is_at_work(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = runs / "two/cache/.reading-another"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(mark)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"no run at work on it, got process {child.pid} on"):
            clean(runs)
        assert run(["cache", "clean", str(runs / "two"), "--yes"]) == 2
        assert "nothing was removed" in " ".join(capsys.readouterr().err.split())
        assert sum(row["cases"] for row in listing(runs)) == 8
        assert clean(runs / "one")["cases"] == 4
        child.kill()
    assert clean(runs)["cases"] == 4
    assert not (runs / "two/cache").exists()


def test_damaged_cases_are_told_and_removed(runs: Path) -> None:
    (home, *_) = sorted((runs / "one/cache").iterdir())
    (home / "note.json").write_text("{")
    assert sum(row["damaged"] for row in listing(runs / "one")) == 1
    assert clean(runs / "one")["cases"] == 4


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        listing(tmp_path / "none")
    assert listing(tmp_path) == []


def test_build_from_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=3)
    out = tmp_path / "run"
    assert run(["cache", "build", str(data), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cases"] == 3
    plan = str(out / "plan.json")
    again = ["cache", "build", str(data), "--out", str(tmp_path / "again"), "--plan", plan]
    assert run(again) == 0
    names = [sorted(p.name for p in (tmp_path / r / "cache").iterdir()) for r in ("run", "again")]
    assert names[0] == names[1]
