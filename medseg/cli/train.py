"""``medseg train``."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from medseg.cli.progress import phase_bars, stderr_console

_PHASES = {
    "check": "Checking cases", "fingerprint": "Reading intensities", "profile": "Looking at masks",
    "preprocess": "Preprocessing",
    "train": "Training", "validate": "Validating",
}  # fmt: skip


def train_command(
    dataset: Annotated[Path, typer.Argument(help="Folder or table, of any layout.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder; the model goes to RUN/model.")],
    config: Annotated[
        str | None, typer.Option("--config", help="A preset (default, fast ...) or a YAML file.")
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, e.g. plan.patch_size=[64,64,64].")
    ] = None,
    fold: Annotated[
        str | None, typer.Option("--fold", help="0 to 4, all (each in turn) or all-data.")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", help="Begin with the weights of this model; labels may differ."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Select, merge, rename: a, b+c, new=1+2.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option("--network", help="unet, residual_unet_l, deeplab ... (docs/networks.md)."),
    ] = None,
    plan_file: Annotated[
        str | None, typer.Option("--plan", help="Train with this plan (medseg plan writes one).")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="small (4 GB), medium (8 GB) or large (24 GB).")
    ] = None,
    target_memory: Annotated[
        str | None,
        typer.Option("--target-memory", help="What a training step may take, e.g. 8GB."),
    ] = None,
    configuration: Annotated[
        str | None,
        typer.Option(
            "--configuration",
            help="auto, 2d, 3d, 3d-low (coarse grid), cascade; several (2d,3d) or best: compared.",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Wall time of the whole run, e.g. 10min.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Instead of a budget.")] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option("--checkpoint-every", help="Time between two checkpoints; default 5min."),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option("--mlflow", help="Also log to this MLflow server, or sqlite:///file.db."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides every random draw.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Bit-equal weights for equal input.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out; with more --epochs or --budget, also a done one.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train an organ segmenter on a dataset.

    Ctrl-C or SIGTERM ends at the next step; the same command with --resume goes on.
    Several GPUs: torchrun --nproc-per-node=2 -m medseg train ...

    Example: medseg train data/Task04 --out runs/hippocampus --fold 0 --budget 10min
    """
    from medseg.workflows.train import train

    settings: dict[str, Any] = {
        "set": pairs or [], "fold": fold, "start_from": start_from, "labels": labels,
        "budget": budget, "epochs": epochs, "checkpoint_every": checkpoint_every,
        "device": device, "seed": seed, "deterministic": deterministic or None,
        "network": network, "plan_file": plan_file, "preset": preset,
        "target_memory": target_memory, "configuration": configuration,
        "mlflow": mlflow,
    }  # fmt: skip
    with _stop_signal() as stop, phase_bars(_PHASES) as progress:
        result = train(
            dataset,
            out,
            config=config,
            resume=resume,
            progress=progress,
            stop=stop.is_set,
            **settings,
        )
    if not result:  # of the processes that train together, one speaks
        return
    if as_json:
        typer.echo(json.dumps(result))
        return
    _show(result)


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Turn Ctrl-C or SIGTERM into a request; a second Ctrl-C ends at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        stderr_console().print("stopping after this step; the state is saved")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    metrics = result["metrics"]
    if compared := result.get("configurations"):
        from medseg.report.configurations import HEADS, configuration_rows

        standings = Table(*HEADS, title=f"Configurations, {compared['cases']} cases")
        for cells in configuration_rows(compared):
            standings.add_row(*cells)
        console.print(standings)
        for note in (compared["reason"], *compared["notes"]):
            console.print(note, highlight=False)
    if metrics and "labels" in metrics:
        table = Table(title=f"Validation, {len(metrics['cases'])} cases")
        for column in ("label", "Dice", "IoU", "HD95 (mm)", "NSD"):
            table.add_column(column, justify="left" if column == "label" else "right")
        for row in [*metrics["labels"].values(), {"name": "mean", **metrics["mean"]}]:
            figures = (row["dice"], row["iou"], row["hd95_mm"], row["nsd"])
            table.add_row(row["name"], *("-" if f is None else f"{f:.3f}" for f in figures))
        console.print(table)
    elif metrics:
        console.print(f"mean Dice over folds: {metrics['mean']['dice']:.4f}")
    seconds = ", ".join(f"{phase} {took:.0f} s" for phase, took in result["seconds"].items())
    console.print(f"{result['steps']} steps; {seconds}", highlight=False)
    for what in ("model", "report"):
        console.print(f"{what}: {result[what]}", highlight=False, soft_wrap=True)
