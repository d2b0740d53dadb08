"""Predicting with a model of nnU-Net: ``medseg predict`` against ``nnUNetv2_predict``, CPU.

    python benchmarks/nnunet_predict.py large --peer PYTHON --models OUT       one large CT
    python benchmarks/nnunet_predict.py organs --peer PYTHON --models OUT      27 classes, 2x
    python benchmarks/nnunet_predict.py batch --peer PYTHON --model FOLDER --images FOLDER

PYTHON is the interpreter of an environment with nnunetv2; OUT is what
``benchmarks/peers/train_nnunet.py OUT --kinds wide organs`` wrote there. The scans of the first
two are phantoms, made here. ``batch`` takes an nnU-Net model folder and 40 scans of one channel.

Both commands are timed as processes, from start to end, in turn, with the same model, tiles,
views and number of cores, after one untimed start of each that fills the page cache. medseg
runs with a cache folder of its own: its first run converts the network and measures backends,
and is told apart from the runs after it. Phases: nnU-Net's by the lines that it prints
(starting and reading; network; restoring and writing), medseg's by its ledger. The masks of both
are compared as in ``agreement.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from agreement import compare, voxels
from kinds import WIDE
from phantoms import phantom, write

_TRAINED = {"large": "wide", "organs": "organs"}
# Voxels of the timed scan: its working grid has 32 and 16 tiles.
_SHAPES = {"large": (320, 320, 90), "organs": (400, 400, 150)}
_BATCH_CASES = 40
_ENDING = ".nii.gz"


@dataclass(frozen=True)
class Timing:
    """Wall time of a process and of its phases, in seconds."""

    whole: float
    phases: dict[str, float]
    backend: str = ""

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.phases.items())
        return f"{self.whole:.1f} s ({parts}{', ' + self.backend if self.backend else ''})"


class Peer:
    """``nnUNetv2_predict`` with a model folder, put where it looks for models."""

    def __init__(self, python: str, model: Path, work: Path) -> None:
        plans = json.loads((model / "plans.json").read_text(encoding="utf-8"))
        self.folds = sorted(path.name.removeprefix("fold_") for path in model.glob("fold_*"))
        self.configuration = model.name.split("__")[-1] if "__" in model.name else "3d_fullres"
        self.plans, self.dataset = plans["plans_name"], plans["dataset_name"]
        folder = work / "results" / self.dataset
        folder.mkdir(parents=True)
        link = folder / f"nnUNetTrainer__{self.plans}__{self.configuration}"
        link.symlink_to(model.resolve(), target_is_directory=True)
        self.command = str(Path(python).with_name("nnUNetv2_predict"))
        self.environment = {
            **os.environ, "nnUNet_results": str(work / "results"), "nnUNet_raw": str(work),
            "nnUNet_preprocessed": str(work), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip

    def arguments(self, images: Path, out: Path) -> list[str]:
        """The command that a user types."""
        number = str(int(self.dataset[7:10]))
        return [
            self.command, "-i", str(images), "-o", str(out), "-d", number, "-p", self.plans,
            "-c", self.configuration, "-f", *self.folds, "-device", "cpu",
        ]  # fmt: skip

    def run(self, images: Path, out: Path) -> Timing:
        """Segment a folder; the network is timed between the lines before and after it."""
        started = time.perf_counter()
        network = first = begun = last = 0.0
        with subprocess.Popen(
            self.arguments(images, out), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=self.environment,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                now = time.perf_counter() - started
                if line.startswith("Predicting "):
                    begun, first = now, first or now
                elif line.startswith("sending off"):
                    network, last = network + now - begun, now
        if process.returncode:
            raise RuntimeError(f"nnUNetv2_predict ended with {process.returncode}")
        whole = time.perf_counter() - started
        between = last - first - network
        return Timing(
            whole,
            {"start and read": first, "network": network, "between": between, "end": whole - last},
        )


class Ours:
    """``medseg predict`` with the imported model."""

    def __init__(self, model: Path, work: Path) -> None:
        self.model = work / "medseg_model"
        self.environment = {**os.environ, "MEDSEG_CACHE": str(work / "cache")}
        folds = ",".join(sorted(path.name.removeprefix("fold_") for path in model.glob("fold_*")))
        self._medseg("import-nnunet", model, "--out", self.model, "--folds", folds)

    def _medseg(self, *arguments: str | Path) -> float:
        command = [sys.executable, "-m", "medseg", *map(str, arguments)]
        started = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment
        )
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout)[-2000:])
        return time.perf_counter() - started

    def run(self, images: Path, out: Path) -> Timing:
        """Segment a folder; the phases of all cases are summed, though they overlap."""
        whole = self._medseg("predict", self.model, images, "--out", out)
        phases: dict[str, float] = {}
        backends = set()
        for (facts,) in sqlite3.connect(out / ".medseg" / "ledger.sqlite").execute(
            "select facts from cases"
        ):
            told = json.loads(facts)
            backends.add(str(told["provenance"].get("backend", "")))
            for name, seconds in told["seconds"].items():
                phases[name] = phases.get(name, 0.0) + seconds
        return Timing(whole, phases, "+".join(sorted(backends)))


def make_scan(what: str, images: Path, truth: Path) -> None:
    """The phantom of a timed run, with organs as large as those that the model saw."""
    kind = WIDE[_TRAINED[what]]
    look = replace(kind.look, shape=_SHAPES[what], vary=0.0)
    voxels_of, mask, affine = phantom(look, 77, labels=kind.painted)
    write(images / f"case_0000{_ENDING}", voxels_of[0], affine)
    write(truth / f"case{_ENDING}", mask, affine)


def copy_cases(source: Path, images: Path) -> None:
    """40 scans under nnU-Net's names."""
    images.mkdir(parents=True)
    scans = sorted(path for path in source.iterdir() if path.name.endswith(_ENDING))
    for path in scans[:_BATCH_CASES]:
        name = path.name.removesuffix(_ENDING)
        shutil.copyfile(path, images / f"{name}_0000{_ENDING}")


def told_masks(ours: Path, theirs: Path) -> str:
    """How equal the masks of two folders are."""
    masks = sorted(theirs.glob(f"*{_ENDING}"))
    found = [compare(voxels(ours / path.name), voxels(path)) for path in masks]
    dice = [score for one in found for score in one.dice.values()]
    share = min(one.equal_share for one in found)
    return f"Dice {np.mean(dice):.5f}, least {min(dice):.5f}, {100 * share:.3f} % equal"


def measure(peer: Peer, ours: Ours, images: Path, work: Path, *, rounds: int) -> None:
    """Time both in turn and print."""
    subprocess.run([peer.command, "-h"], capture_output=True, check=False, env=peer.environment)
    print("peer:", " ".join(peer.arguments(Path("IMAGES"), Path("OUT"))[1:]), flush=True)
    first = ours.run(images, work / "ours_first")
    print(f"medseg, first run with this model: {first}", flush=True)
    mine, theirs = [], []
    for number in range(rounds):
        sides = [(theirs, peer, "nnU-Net"), (mine, ours, "medseg")]
        for kept, side, name in sides if number % 2 == 0 else reversed(sides):
            out = work / f"{name}_{number}"
            kept.append(side.run(images, out))
            print(f"{name}: {kept[-1]}", flush=True)
    print("masks of both:", told_masks(work / "medseg_0", work / "nnU-Net_0"))
    if (work / "truth").is_dir():
        print("medseg and truth:", told_masks(work / "medseg_0", work / "truth"))
    whole = statistics.median(one.whole for one in theirs)
    again = statistics.median(one.whole for one in mine)
    share = statistics.median(one.phases["network"] / one.whole for one in theirs)
    print(
        f"nnU-Net {whole:.1f} s (network {100 * share:.0f} %), medseg {again:.1f} s, ratio "
        f"{whole / again:.2f}; with its first run {first.whole:.1f} s, ratio "
        f"{whole / first.whole:.2f} (medians of {rounds})"
    )


def main() -> None:
    """Measure one row and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["large", "organs", "batch"])
    parser.add_argument("--peer", required=True, help="python of an environment with nnunetv2")
    parser.add_argument("--models", type=Path, help="what train_nnunet.py wrote")
    parser.add_argument("--model", type=Path, help="an nnU-Net model folder, for batch")
    parser.add_argument("--images", type=Path, help="a folder of scans, for batch")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = work / "images"
        if options.what == "batch":
            model = options.model
            copy_cases(options.images, images)
        else:
            results = options.models / _TRAINED[options.what] / "results"
            model = next(results.glob("*/*__3d_fullres"))
            make_scan(options.what, images, work / "truth")
        ours = Ours(model, work)
        measure(Peer(options.peer, model, work), ours, images, work, rounds=options.rounds)


if __name__ == "__main__":
    main()
