"""Batches with a ledger: what is done stays done, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.batch import local
from medseg.batch.ledger import Entry, Ledger, read_ledger
from medseg.batch.local import BatchOptions, predict_batch
from medseg.cli.app import run
from medseg.core.errors import InputError, Interrupted, OutputError, ResourceError, SettingsError
from medseg.io.atomic import this_process
from medseg.workflows.api import Model, load_model
from medseg.workflows.cases import find_cases
from medseg.workflows.predict import predict
from medseg.workflows.work import Work
from tests.models import small_plan, write_random_package
from tests.phantoms import blobs, oblique_affine, write_nifti

SHAPE = (11, 8, 6)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_package(tmp_path_factory.mktemp("one") / "model", small_plan())


@pytest.fixture(scope="module")
def model(package: Path) -> Model:
    return load_model(package, "cpu", backend="torch")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number in range(4):
        scan(tmp_path / "in" / f"c{number}.nii.gz", seed=number)
    return tmp_path / "in"


def scan(path: Path, *, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Path:
    return write_nifti(path, blobs(shape, seed=seed)[0], oblique_affine())


def masks(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and ".medseg" not in path.relative_to(out).parts
    }


def ledger(out: Path, name: str = "ledger") -> dict[str, Any]:
    return read_ledger(out / ".medseg" / f"{name}.sqlite")


class Count:
    """Which cases the network saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cases: list[str] = []
        infer = Model.infer

        def counted(model: Model, prepared: Any, **options: Any) -> Any:
            self.cases.append(Path(prepared.scan.source).name.split(".")[0])
            return infer(model, prepared, **options)

        monkeypatch.setattr(Model, "infer", counted)

    def take(self) -> list[str]:
        taken, self.cases = sorted(self.cases), []
        return taken


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Count:
    return Count(monkeypatch)


# What is done, and what is done again


def test_masks_are_those_of_predict_and_a_second_run_does_nothing(
    model: Model, scans: Path, tmp_path: Path, seen: Count
) -> None:
    predict(model, scans, tmp_path / "plain")
    seen.take()
    first = predict_batch(model, scans, tmp_path / "out")
    assert first["kept"] == first["left"] == 0
    assert list(first["done"]) == ["c0", "c1", "c2", "c3"]
    assert masks(tmp_path / "out") == masks(tmp_path / "plain")
    assert seen.take() == ["c0", "c1", "c2", "c3"]
    second = predict_batch(model, scans, tmp_path / "out")
    assert second["done"] == first["done"]
    assert second["kept"] == 4
    assert seen.take() == []
    summary = json.loads((tmp_path / "out" / ".medseg" / "summary.json").read_text())
    assert summary == second


def test_what_the_ledger_knows(model: Model, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_batch(model, scans, out)
    entry = ledger(out)["c2"]
    assert (entry.state, entry.error) == ("done", "")
    assert set(entry.facts["seconds"]) == {"read", "prepare", "segment", "finish", "write"}
    assert entry.facts["attempts"] == 1
    assert entry.facts["warnings"] == []
    assert entry.facts["peak_memory_bytes"] > 10e6
    sidecar = json.loads((out / "c2.json").read_text())
    assert entry.facts["provenance"].items() <= sidecar.items()
    done = subprocess.run(
        ["sha256sum", "c2.nii.gz", "c2.json"], cwd=out, capture_output=True, text=True, check=True
    )
    listed = dict(line.split("  ")[::-1] for line in done.stdout.splitlines())
    assert entry.facts["files"] == listed
    with sqlite3.connect(out / ".medseg" / "ledger.sqlite") as base:
        kinds = {str(row[2]).lower() for row in base.execute("pragma table_info(cases)")}
        assert base.execute("pragma journal_mode").fetchone() == ("delete",)
    base.close()
    assert kinds == {"text"}


def test_warnings_of_a_case_are_kept_with_it(model: Model, scans: Path, tmp_path: Path) -> None:
    affine = oblique_affine()
    affine[:3, 2] += 0.4 * affine[:3, 1]  # a gantry tilt
    write_nifti(scans / "tilted.nii.gz", blobs(SHAPE)[0], affine)
    predict_batch(model, scans, tmp_path / "out")
    told = {case: entry.facts["warnings"] for case, entry in ledger(tmp_path / "out").items()}
    assert [case for case, warnings in told.items() if warnings] == ["tilted"]
    assert any("right angles" in warning for warning in told["tilted"])


def rewrite_scan(scans: Path, out: Path) -> None:
    scan(scans / "c1.nii.gz", seed=9)


def damage_mask(scans: Path, out: Path) -> None:
    data = bytearray((out / "c1.nii.gz").read_bytes())
    data[-3] ^= 1
    (out / "c1.nii.gz").write_bytes(data)


def remove_sidecar(scans: Path, out: Path) -> None:
    (out / "c1.json").unlink()


def touch_scan(scans: Path, out: Path) -> None:
    os.utime(scans / "c1.nii.gz", ns=(1, 1))


@pytest.mark.parametrize("change", [rewrite_scan, damage_mask, remove_sidecar, touch_scan])
def test_what_changed_is_done_again(
    model: Model, scans: Path, tmp_path: Path, seen: Count, change: Callable[[Path, Path], None]
) -> None:
    out = tmp_path / "out"
    predict_batch(model, scans, out)
    seen.take()
    change(scans, out)
    assert predict_batch(model, scans, out)["kept"] == 3
    assert seen.take() == ["c1"]
    assert predict_batch(model, scans, out)["kept"] == 4


def test_content_counts_with_verify(model: Model, scans: Path, tmp_path: Path, seen: Count) -> None:
    out, verify = tmp_path / "out", BatchOptions(verify=True)
    predict_batch(model, scans, out)
    seen.take()
    # Copied elsewhere and touched, but the same.
    moved = tmp_path / "moved"
    shutil.copytree(scans, moved)
    touch_scan(moved, out)
    assert predict_batch(model, moved, out, batch=verify)["kept"] == 4
    # Changed, but of the same size and time: only its content tells.
    facts = (moved / "c2.nii.gz").stat()
    data = bytearray((moved / "c2.nii.gz").read_bytes())
    data[4] ^= 1  # a time in the gzip header, the voxels are the same
    (moved / "c2.nii.gz").write_bytes(data)
    os.utime(moved / "c2.nii.gz", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert predict_batch(model, moved, out)["kept"] == 3  # c1 was touched
    assert seen.take() == ["c1"]
    assert predict_batch(model, moved, out, batch=verify)["kept"] == 3
    assert seen.take() == ["c2"]


def test_another_model_or_option_makes_another_mask(
    model: Model, scans: Path, tmp_path: Path, seen: Count
) -> None:
    out = tmp_path / "out"
    predict_batch(model, scans, out)
    assert predict_batch(model, scans, out, labels="low")["kept"] == 0
    assert predict_batch(model, scans, out, labels=["LOW "])["kept"] == 4
    plan = small_plan(**{"inference.step": 0.25})
    other = write_random_package(tmp_path / "other" / "model", plan)
    assert predict_batch(other, scans, out, labels="low", backend="torch")["kept"] == 0
    # Limits of memory change no mask.
    again = predict_batch(other, scans, out, labels="low", backend="torch", max_memory_bytes=10**9)
    assert again["kept"] == 4


def test_limit(model: Model, scans: Path, tmp_path: Path) -> None:
    out, two = tmp_path / "out", BatchOptions(limit=2)
    summaries = [predict_batch(model, scans, out, batch=two) for _ in range(3)]
    assert [(len(s["done"]), s["kept"], s["left"]) for s in summaries] == [
        (2, 0, 2), (4, 2, 0), (4, 4, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", ""])
def test_shards_that_are_none(shard: str) -> None:
    if not shard:
        assert BatchOptions(shard=None).part == (1, 1)
        return
    with pytest.raises(SettingsError, match=r"--shard: expected i/n"):
        BatchOptions(shard=shard)
    with pytest.raises(SettingsError, match="--limit"):
        BatchOptions(limit=0)


# Failures


def test_a_scan_at_fault_waits_and_a_fault_of_the_machine_does_not(
    model: Model, scans: Path, tmp_path: Path, seen: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    whole = (scans / "c1.nii.gz").read_bytes()
    (scans / "c1.nii.gz").write_bytes(whole[:-20])
    infer = Model.infer

    def full(model: Model, prepared: Any, **options: Any) -> Any:
        if Path(prepared.scan.source).name.startswith("c2"):
            raise MemoryError
        return infer(model, prepared, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "infer", full)
        first = predict_batch(model, scans, out)
    assert sorted(first["failed"]) == ["c1", "c2"]
    assert first["failed"]["c2"].startswith("memory: expected enough for this scan")
    seen.take()
    second = predict_batch(model, scans, out)
    assert list(second["failed"]) == ["c1"]
    assert second["failed"]["c1"].endswith("(in an earlier run; --retry-failed tries it again)")
    assert seen.take() == ["c2"]
    assert ledger(out)["c1"].facts["attempts"] == 1
    third = predict_batch(model, scans, out, batch=BatchOptions(retry_failed=True))
    assert "earlier run" not in third["failed"]["c1"]
    assert ledger(out)["c1"].facts["attempts"] == 2
    # Mended: it is tried without being asked.
    (scans / "c1.nii.gz").write_bytes(whole)
    assert predict_batch(model, scans, out)["failed"] == {}
    assert seen.take() == ["c1"]


def test_one_corrupt_one_too_large_one_done(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = scan(tmp_path / "in" / "good.nii.gz")
    scan(tmp_path / "in" / "large.nii.gz", shape=(90, 80, 70))
    (tmp_path / "in" / "corrupt.nii.gz").write_bytes(good.read_bytes()[:-30])
    out = tmp_path / "out"
    arguments = ["predict", str(package), str(tmp_path / "in"), "--out", str(out)]
    options = ["--device", "cpu", "--backend", "torch", "--max-memory", "3MB"]
    assert run([*arguments, *options]) == 3
    captured = capsys.readouterr()
    assert captured.out.startswith(f"1 masks in {out}, ")
    failed = [line for line in captured.err.splitlines() if line.startswith("failed: ")]
    assert [line.split(":")[1].strip() for line in failed] == ["corrupt", "large"]
    assert "--max-memory: expected" in failed[1]
    assert sorted(masks(out)) == ["good.json", "good.nii.gz"]
    assert {case: entry.state for case, entry in ledger(out).items()} == {
        "corrupt": "failed", "good": "done", "large": "failed",
    }  # fmt: skip


def test_all_failed_is_an_error(model: Model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes(b"no scan")
    with pytest.raises(InputError, match="All 2 cases failed; this is the first"):
        predict_batch(model, tmp_path / "in", tmp_path / "out")
    assert [entry.state for entry in ledger(tmp_path / "out").values()] == ["failed", "failed"]


# Shards and runs side by side


def test_shards_share_the_cases(
    model: Model, scans: Path, tmp_path: Path, seen: Count, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    first = predict_batch(model, scans, out, batch=BatchOptions(shard="1/2"))
    second = predict_batch(model, scans, out, batch=BatchOptions(shard=" 2 / 2 "))
    assert (list(first["done"]), list(second["done"])) == (["c0", "c2"], ["c1", "c3"])
    assert sorted(ledger(out, "ledger-1-of-2")) == ["c0", "c2"]
    assert sorted(ledger(out, "ledger-2-of-2")) == ["c1", "c3"]
    seen.take()
    # Other parts, or none, find what these have done; a ledger that is damaged is left out.
    assert predict_batch(model, scans, out)["kept"] == 4
    assert predict_batch(model, scans, out, batch=BatchOptions(shard="2/3"))["kept"] == 1
    (out / ".medseg" / "ledger-1-of-2.sqlite").write_bytes(b"no ledger, but long enough" * 99)
    assert predict_batch(model, scans, out)["kept"] == 2
    assert seen.take() == ["c0", "c2"]
    assert "Remove" in caplog.text
    with pytest.raises(OutputError, match=r"ledger-1-of-2\.sqlite.*Remove"):
        predict_batch(model, scans, out, batch=BatchOptions(shard="1/2"))


def test_two_runs_of_one_shard(model: Model, scans: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []

    def try_another(done: int, total: int, case: str) -> None:
        if done == 1:
            for shard in (None, "1/2"):
                with pytest.raises(InputError) as told:
                    predict_batch(model, scans, out, batch=BatchOptions(shard=shard))
                said.append(str(told.value))

    predict_batch(model, scans, out, progress=try_another)
    same, part = said
    assert f"expected no other run at work on it, got process {os.getpid()} on " in same
    assert "--shard 1/2" in same
    assert "expected no run at work but parts of 2, got one that holds" in part
    # Nothing of it stays.
    assert predict_batch(model, scans, out)["kept"] == 4


def test_what_killed_runs_left_is_removed(model: Model, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    machine = this_process().partition("-")[0]
    predict_batch(model, scans, out)
    stale, others, mine = (
        out / f".medseg-{owner}-x1.nii.gz"
        for owner in (f"{machine}-{child.pid}", "00000000-1", this_process())
    )
    for path in (stale, others, mine):
        path.write_bytes(b"half")
    (out / ".medseg-notes").touch()
    predict_batch(model, scans, out)
    assert not stale.exists()
    assert others.exists()
    assert mine.exists()
    assert (out / ".medseg-notes").exists()
    # The run before held the lock, and this one has it: it must have ended, wherever it was.
    (out / ".medseg" / "lock").write_text(json.dumps({"process": "00000000-1"}))
    predict_batch(model, scans, out)
    assert not others.exists()


# Ctrl-C, and disks that cannot be written


def test_ctrl_c_keeps_what_is_done(
    model: Model, scans: Path, tmp_path: Path, seen: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def press(done: int, total: int, case: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"stopped: \d of 4 cases are done. The same command"):
        predict_batch(model, scans, out, progress=press)
    entries = ledger(out)
    done = sorted(case for case, entry in entries.items() if entry.state == "done")
    assert len(done) >= 2
    assert {entry.state for entry in entries.values()} <= {"done", "pending"}
    assert sorted(masks(out)) == sorted(f"{c}{s}" for c in done for s in (".json", ".nii.gz"))
    seen.take()
    assert predict_batch(model, scans, out)["kept"] == len(done)
    assert seen.take() == sorted({"c0", "c1", "c2", "c3"} - set(done))


def test_ctrl_c_ends_the_network_between_tiles(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(tmp_path / "in" / "a.nii.gz", shape=(90, 60, 40))
    tiles = threading.Event()
    began: list[float] = []
    infer = Model.infer

    def slow(model: Model, prepared: Any, *, before_tiles: Callable[[], None], **more: Any) -> Any:
        def before() -> None:
            began.append(time.monotonic())
            tiles.set()
            time.sleep(0.02)
            before_tiles()

        return infer(model, prepared, before_tiles=before, **more)

    monkeypatch.setattr(Model, "infer", slow)

    def press() -> None:
        if tiles.wait(30):
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(Interrupted, match="0 of 1"):
        predict_batch(model, tmp_path / "in", tmp_path / "out")
    # Of more than a hundred tiles.
    assert len(began) < 50
    assert ledger(tmp_path / "out")["a"].state == "pending"
    assert masks(tmp_path / "out") == {}


@pytest.mark.parametrize("after", ["begin immediate", "insert", "commit"])
def test_ctrl_c_in_the_middle_of_a_note(after: str, tmp_path: Path) -> None:
    class Interrupting:
        """A connection whose user presses Ctrl-C as one of its statements is done."""

        def __init__(self, base: sqlite3.Connection) -> None:
            self.base, self.pressed = base, False

        def execute(self, text: str) -> object:
            found = self.base.execute(text)
            self._press(text)
            return found

        def executemany(self, text: str, rows: object) -> object:
            found = self.base.executemany(text, rows)  # type: ignore[arg-type]
            self._press(text)
            return found

        def _press(self, text: str) -> None:
            if text.startswith(after) and not self.pressed:
                self.pressed = True
                raise KeyboardInterrupt

        def __getattr__(self, name: str) -> object:
            return getattr(self.base, name)

    with Ledger(tmp_path / "ledger.sqlite") as kept:
        kept._base = Interrupting(kept._base)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            kept.write([Entry("a", "running", {})])
        # What stops the run notes how far it is.
        kept.write([Entry("b", "pending", {})])
        found = kept.read()
    assert set(found) == ({"a", "b"} if after == "commit" else {"b"})


def test_the_command_stopped(
    package: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(*_: Any, **__: Any) -> Any:
        raise Interrupted("stopped: 1 of 4 cases are done", cure="The same command goes on.")

    monkeypatch.setattr(local, "predict_batch", stop)
    assert run(["predict", str(package), str(scans), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "stopped: 1 of 4 cases are done. The same command goes on.\n"


def test_a_ledger_that_cannot_be_written(
    model: Model, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="--out"):
        predict_batch(model, scans, tmp_path / "file")
    (tmp_path / "a" / ".medseg" / "ledger.sqlite").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"ledger\.sqlite: expected a file that can be written"):
        predict_batch(model, scans, tmp_path / "a")
    (tmp_path / "b" / ".medseg" / "lock").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"writing .*lock"):
        predict_batch(model, scans, tmp_path / "b")


_LITTLE_ROOM = """
import resource, sys
from medseg.batch.ledger import Entry, Ledger
from pathlib import Path

with Ledger(Path(sys.argv[1])) as ledger:
    ledger.write([Entry("before", "done")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        ledger.write(Entry(f"case {n}", "running", {"x": "y" * 500}) for n in range(1000))
    except Exception as error:
        print(type(error).__name__, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ledger.write([Entry("after", "done")])
    print(sorted(ledger.read()))
"""


def test_a_disk_that_fills_keeps_the_ledger_whole(tmp_path: Path, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LITTLE_ROOM, str(tmp_path / "ledger.sqlite")],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, entries = done.stdout.splitlines()
    assert told.startswith("OutputError the ledger ")
    assert "Free some space" in told
    assert entries == "['after', 'before']"


def test_a_ledger_of_a_newer_medseg(model: Model, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_batch(model, scans, out)
    base = sqlite3.connect(out / ".medseg" / "ledger.sqlite")
    base.execute("pragma user_version = 2")
    base.close()
    with pytest.raises(OutputError, match="expected a ledger of format 1, got format 2"):
        predict_batch(model, scans, out)


# Devices and the command


def test_two_devices_share_one_queue(
    package: Path, model: Model, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    together = threading.Barrier(2)
    infer = Work.infer

    def watched(work: Work, ready: Any, *, device: int, **options: Any) -> Any:
        used.append(device)
        together.wait(30)
        return infer(work, ready, device=device, **options)

    monkeypatch.setattr(Work, "infer", watched)
    monkeypatch.setattr(Work, "is_small", lambda *_: False)
    summary = predict_batch(package, scans, tmp_path / "two", device="cpu, cpu", backend="torch")
    assert sorted(summary["done"]) == ["c0", "c1", "c2", "c3"]
    assert sorted(used) == [0, 0, 1, 1]
    monkeypatch.setattr(Work, "infer", infer)
    predict_batch(model, scans, tmp_path / "one")
    assert masks(tmp_path / "two") == masks(tmp_path / "one")


@pytest.mark.parametrize("devices", ["cpu,", ",", "cpu,abacus"])
def test_devices_that_are_none(package: Path, scans: Path, tmp_path: Path, devices: str) -> None:
    with pytest.raises((InputError, ResourceError), match="--device"):
        predict_batch(package, scans, tmp_path / "out", device=devices)
    assert not (tmp_path / "out").exists()


def test_the_command_keeps_a_ledger_of_folders_alone(
    package: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(package), "--backend", "torch", "--device", "cpu", "--out"]
    one = scans / "c0.nii.gz"
    assert run([*arguments, str(tmp_path / "one"), str(one)]) == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["c0.json", "c0.nii.gz"]
    out = tmp_path / "out"
    assert run([*arguments, str(out), str(scans), "--limit", "1"]) == 0
    assert f"1 masks in {out} (3 left), " in capsys.readouterr().out
    assert run([*arguments, str(out), str(scans)]) == 0
    assert f"4 masks in {out} (1 from before), " in capsys.readouterr().out
    (scans / "bad.nii.gz").write_bytes(one.read_bytes()[:-20])
    for kept in (4, 4):
        assert run([*arguments, str(out), str(scans), "--json"]) == 3
        summary = json.loads(capsys.readouterr().out)
        assert (summary["kept"], list(summary["failed"])) == (kept, ["bad"])
    # The masks are no scans and the ledger is no mask.
    assert len(find_cases([out], small_plan())) == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--shard", "0/3"], "--shard: expected i/n"),
        (["--limit", "0"], "--limit: expected 1 or more, got 0"),
        (["--max-memory", "lots"], "--max-memory: expected a size such as 4GB"),
        (["--max-device-memory", "0"], "--max-device-memory: expected a size"),
        (["--ring", "fp8"], "--ring: expected auto, fp32, fp16, got fp8"),
        (["--backend", "abacus"], "--backend: expected auto"),
    ],
)
def test_bad_options(
    package: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], told: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert run(["predict", str(package), str(scans), "--out", str(out), *options]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_a_scan_above_memory_goes_from_disk_to_disk(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(tmp_path / "in" / "large.nii.gz", shape=(40, 30, 20))
    scan(tmp_path / "in" / "small.nii.gz")
    options: dict[str, Any] = {"device": "cpu", "backend": "torch"}
    plain = predict_batch(package, tmp_path / "in", tmp_path / "plain", **options)
    streamed: list[str] = []
    to_file = Model.predict_to_file

    def watched(self: Model, source: Path, path: Path, **kept: Any) -> Any:
        streamed.append(path.name)
        return to_file(self, source, path, **kept)

    monkeypatch.setattr(Model, "predict_to_file", watched)
    # Which scans these are is tested elsewhere; here they would have to be large.
    monkeypatch.setattr(Model, "must_stream", lambda _, scan: scan.geometry.shape[0] == 40)
    out = tmp_path / "out"
    summary = predict_batch(package, tmp_path / "in", out, **options)
    assert summary["failed"] == {}
    assert streamed == ["large.nii.gz"]
    assert sorted(masks(out)) == sorted(masks(tmp_path / "plain"))
    for case, path in plain["done"].items():
        ours, theirs = nib.load(summary["done"][case]), nib.load(path)
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    assert {"prepare", "segment", "finish", "write"} <= set(ledger(out)["large"].facts["seconds"])
    again = predict_batch(package, tmp_path / "in", out, **options)
    assert again["kept"] == 2


def test_a_batch_starts_without_monai(repository: Path) -> None:
    # Loading it takes longer than a small scan.
    code = "import sys, medseg.batch.local; print('monai' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False"]
