"""Run the full counts and write docs/acceptance.md: the command, the figure and the date of each.

``python acceptance/run.py`` runs all; names of measures after it run those alone and keep the
other rows of the page as they are. Time is not limited. Real scans are looked for in the
folder that MEDSEG_TEST_DATA names, else in ``shared/data`` beside the project.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "acceptance.md"
OUT = ROOT / "runs" / "acceptance"
DATA = Path(os.environ.get("MEDSEG_TEST_DATA", ROOT.parent / "shared" / "data"))
_ROW = re.compile(r"^\| (?P<name>[\w-]+) \|.*\|$")


class AbsentError(Exception):
    """What a measure needs (data, a device) is absent."""


@dataclass(frozen=True)
class Measure:
    """One row of the page.

    Attributes:
        name: What to call it on the command line.
        goal: What the figure must be.
        command: What a reader would type.
        figure: Runs it and says what came out.
    """

    name: str
    goal: str
    command: str
    figure: Callable[[], str]


def run(*command: str) -> tuple[str, float]:
    """Run a command in the project's folder; its output and its wall time in seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise RuntimeError(f"exit code {done.returncode} of {' '.join(command)}\n{last}")
    return done.stdout, seconds


def fastest(*command: str, tries: int = 7) -> float:
    """Wall time of the quickest of several tries: the others measure the machine's other work."""
    return min(run(*command)[1] for _ in range(tries))


def start_of_help() -> str:
    """Time of ``medseg --help``."""
    return f"{fastest('-m', 'medseg', '--help'):.2f} s"


def start_of_import() -> str:
    """Time that ``import medseg`` adds to a bare Python."""
    return f"{fastest('-c', 'import medseg') - fastest('-c', 'pass'):.3f} s"


def acceptance_tests() -> str:
    """The tests that are too long for every day."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "acceptance", "tests"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1]
    if done.returncode not in (0, 5):  # 5: no test has the mark
        raise RuntimeError(last)
    return last.strip("= ")


def kills() -> str:
    """How often training was killed, and whether it ended with the bits of a run in peace."""
    done, seconds = run(
        "-m", "pytest", "-q", "-m", "acceptance", "tests/training/test_kills.py",
        "tests/workflows/test_train_kills.py",
    )  # fmt: skip
    return f"{done.strip().splitlines()[-1].strip('= ')}; {seconds:.0f} s"


def demo() -> str:
    """Dice on held-out phantoms, and the time of ``make demo`` after the installing."""
    started = time.perf_counter()
    done = subprocess.run(
        ["sh", "scripts/demo.sh"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-500:])
    dice = dice_of(ROOT / "demo" / "evaluation" / "metrics.json")
    return f"{dice}; {time.perf_counter() - started:.0f} s"


def hippocampus() -> str:
    """Dice on fold 0 of the hippocampus after ten minutes with three seeds, and their times."""
    told = [trained_hippocampus("10min", seed) for seed in (0, 1, 2)]
    seeds = "; ".join(f"seed {seed}: {figure}" for seed, (_, figure) in enumerate(told))
    return f"mean Dice {sum(dice for dice, _ in told) / len(told):.4f}; {seeds}"


def hippocampus_hour() -> str:
    """The same after an hour, once."""
    return trained_hippocampus("60min", 0)[1]


def trained_hippocampus(budget: str, seed: int) -> tuple[float, str]:
    """Train, predict and evaluate fold 0: mean Dice, and a figure with the times."""
    data, out = real("hippocampus"), OUT / f"hippocampus_{budget}_{seed}"
    shutil.rmtree(out, ignore_errors=True)
    model, masks, result = (str(out / name) for name in ("run/model", "masks", "evaluation"))
    _, train_s = run(
        "-m", "medseg", "train", str(data), "--out", str(out / "run"), "--fold", "0",
        "--budget", budget, "--seed", str(seed),
    )  # fmt: skip
    held_out = json.loads((data / "splits.json").read_text())[0]["val"]
    images = [str(data / "imagesTr" / f"{case}.nii.gz") for case in held_out]
    _, predict_s = run("-m", "medseg", "predict", model, *images, "--out", masks)
    _, evaluate_s = run(
        "-m", "medseg", "evaluate", masks, str(data / "labelsTr"), "--out", result,
        "--cases", f"{data / 'splits.json'}:0",
    )  # fmt: skip
    times = f"train {train_s:.0f} s, predict {predict_s:.0f} s, evaluate {evaluate_s:.0f} s"
    metrics = Path(result) / "metrics.json"
    return mean_dice(metrics), f"{dice_of(metrics)}; {times}"


def sunnybrook() -> str:
    """Dice of unseen patients' slices after ten minutes."""
    out = OUT / "sunnybrook"
    shutil.rmtree(out, ignore_errors=True)
    _, seconds = run(
        "-m", "medseg", "train", str(slices_by_patient(out)), "--out", str(out / "run"),
        "--budget", "10min",
    )  # fmt: skip
    return f"{dice_of(out / 'run' / 'validation' / 'metrics.json')}; {seconds:.0f} s"


def five_minutes() -> str:
    """What a budget of five minutes gives on four kinds of data; each ends with a package."""
    told = []
    for name in ("hippocampus", "brain_oasis", "sunnybrook_lv_2d", "retina_chase_2d"):
        out = OUT / "five_minutes" / name
        shutil.rmtree(out, ignore_errors=True)
        data = slices_by_patient(out) if name == "sunnybrook_lv_2d" else real(name)
        _, seconds = run(
            "-m", "medseg", "train", str(data), "--out", str(out / "run"), "--budget", "5min"
        )
        run("-m", "medseg", "info", str(out / "run" / "model"))
        dice = mean_dice(out / "run" / "validation" / "metrics.json")
        steps = json.loads((out / "run" / "outcome.json").read_text())["steps"]
        told.append(f"{name} {dice:.3f} ({steps} steps, {seconds:.0f} s)")
    return "; ".join(told)


def slices_by_patient(out: Path) -> Path:
    """Sunnybrook's slices as a table with the patient, the first part of a name, as the group."""
    data = real("sunnybrook_lv_2d")
    out.mkdir(parents=True, exist_ok=True)
    rows = ["case,image,label,patient"]
    for image in sorted((data / "images").iterdir()):
        patient = image.stem.split("-IM-")[0]
        rows.append(f"{image.stem},{image},{data / 'labels' / image.name},{patient}")
    (out / "slices.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return out / "slices.csv"


def real(name: str) -> Path:
    """The folder of a real dataset."""
    if not (DATA / name).is_dir():
        raise AbsentError(f"real data '{name}'")
    return DATA / name


def quality() -> str:
    """How well faulty masks are found and Dice is predicted, on hippocampus."""
    real("hippocampus")
    run("benchmarks/quality_control.py", "hippocampus", "--out", str(OUT / "quality"))
    found = json.loads((OUT / "quality" / "hippocampus" / "result.json").read_text())
    sizes = ", ".join(
        f"{found['faults'][size]['all']:.3f}" for size in ("small", "medium", "large")
    )
    row = found["masks"]["all stages, with confidence"]
    error, covered = f"error {row['mae']:.3f}", f"covered {100 * row['covered']:.1f} %"
    return f"AUROC {sizes}; r {row['r']:.3f}, {error}, {covered}"


def sides() -> str:
    """How many voxels of paired organs get the name of their partner, in three trainings."""
    _, seconds = run("benchmarks/sides.py", "--out", str(OUT / "sides"))
    found = json.loads((OUT / "sides" / "result.json").read_text())
    told = ", ".join(
        f"{name} {100 * row['wrong']:.3f} % (Dice {row['dice']:.3f})" for name, row in found.items()
    )
    return f"{told}; {seconds:.0f} s"


def dice_of(metrics: Path) -> str:
    """Mean Dice and that of each label, from a metrics.json."""
    found = json.loads(metrics.read_text())
    labels = ", ".join(f"{row['name']} {row['dice']:.3f}" for row in found["labels"].values())
    return f"Dice {mean_dice(metrics):.4f} ({labels})"


def mean_dice(metrics: Path) -> float:
    """Mean over labels and cases, from a metrics.json."""
    return float(json.loads(metrics.read_text())["mean"]["dice"])


MEASURES = (
    Measure("help", "< 0.4 s", "medseg --help", start_of_help),
    Measure("import", "< 0.2 s", 'python -c "import medseg"', start_of_import),
    Measure("tests", "all pass", "pytest -m acceptance", acceptance_tests),
    Measure(
        "kills",
        "the same bits after 20 kills, of the loop and of the command; torchrun starts anew",
        "pytest -m acceptance tests/training/test_kills.py tests/workflows/test_train_kills.py",
        kills,
    ),
    Measure(
        "sides",
        "organ voxels on the wrong side: < 0.1 % where labels are exchanged in the mirror, 35 to "
        "65 % (chance) where they are kept",
        "python benchmarks/sides.py",
        sides,
    ),
    Measure("demo", "Dice >= 0.90, < 6 min", "make demo", demo),
    Measure(
        "hippocampus",
        "mean Dice of three seeds >= 0.880",
        "medseg train hippocampus --fold 0 --budget 10min; predict; evaluate",
        hippocampus,
    ),
    Measure(
        "hippocampus-hour",
        "Dice >= 0.890",
        "medseg train hippocampus --fold 0 --budget 60min; predict; evaluate",
        hippocampus_hour,
    ),
    Measure(
        "sunnybrook",
        "Dice >= 0.88",
        "medseg train sunnybrook.csv --budget 10min",
        sunnybrook,
    ),
    Measure(
        "five-minutes",
        "each ends by itself with a package",
        "medseg train DATASET --budget 5min",
        five_minutes,
    ),
    Measure(
        "quality",
        "AUROC >= 0.75, 0.90, 0.97; r >= 0.8, error <= 0.05, covered 85 to 95 %",
        "python benchmarks/quality_control.py hippocampus",
        quality,
    ),
)


def old_rows() -> dict[str, str]:
    """The rows that the page holds already, by name."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.is_file() else []
    matches = [(_ROW.match(line), line) for line in lines]
    return {match["name"]: line for match, line in matches if match}


def write_page(rows: dict[str, str]) -> None:
    """Write the page anew, in the order of the measures."""
    head = (
        "# Acceptance\n\nWritten by `make acceptance`; do not edit by hand.\n\n"
        "| Measure | Goal | Command | Figure | Date | Machine |\n|---|---|---|---|---|---|\n"
    )
    kept = [rows[measure.name] for measure in MEASURES if measure.name in rows]
    PAGE.write_text(head + "\n".join(kept) + "\n", encoding="utf-8")


def main() -> int:
    """Run the measures that were asked for; 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [measure.name for measure in MEASURES]
    parser.add_argument("names", nargs="*", choices=[[], *names], help="all when none is given")
    wanted = parser.parse_args().names or names
    rows, failed = old_rows(), 0
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    for measure in (measure for measure in MEASURES if measure.name in wanted):
        print(f"{measure.name}: {measure.command}", flush=True)
        try:
            figure = measure.figure()
        except AbsentError as absent:
            print(f"  left out: {absent} is not here", flush=True)
            continue
        except (RuntimeError, OSError) as error:
            figure = f"FAILED: {error}".splitlines()[0]
            print(f"  {error}", flush=True)
            failed += 1
        print(f"  {figure}", flush=True)
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        cells = (measure.name, measure.goal, f"`{measure.command}`", figure, today, machine)
        rows[measure.name] = f"| {' | '.join(cells)} |"
        write_page(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
