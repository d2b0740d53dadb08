"""``medseg plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.progress import phase_bars

_PHASES = {"check": "Checking cases", "fingerprint": "Reading intensities"}
_SHORT = (
    "configuration", "spacing mm", "patch size", "batch size", "network", "features",
    "normalisation", "mirror axes",
)  # fmt: skip


def plan_command(
    dataset: Annotated[Path, typer.Argument(help="Folder or table, of any layout.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file; medseg train --plan FILE takes it.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print each choice with its reason.")
    ] = False,
    target_memory: Annotated[
        str | None,
        typer.Option("--target-memory", help="What a training step may take, e.g. 8GB."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Time for the whole run: sizes the network.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="small (4 GB), medium (8 GB) or large (24 GB).")
    ] = None,
    configuration: Annotated[
        str | None, typer.Option("--configuration", help="auto, 2d, 3d or 3d-low (coarse grid).")
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", help="unet, residual_unet_l, deeplab ...")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Select and merge, e.g. liver=1+2,tumour=2.")
    ] = None,
    fold: Annotated[
        str | None, typer.Option("--fold", help="Whose training cases are looked at.")
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, e.g. plan.patch_size=[64,64,64].")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print plan and reasons as JSON.")
    ] = False,
) -> None:
    """Look into a dataset and decide how to train on it, without training.

    The plan is JSON that may be edited: spacing, patch, network, normalisation, augmentation.

    Example: medseg plan data/Task04 --out plan.json --explain --target-memory 8GB
    """
    from medseg.workflows.plan import plan

    settings: dict[str, Any] = {
        "set": pairs or [], "target_memory": target_memory, "budget": budget, "preset": preset,
        "configuration": configuration, "network": network, "labels": labels, "fold": fold,
        "device": device,
    }  # fmt: skip
    with phase_bars(_PHASES) as progress:
        result = plan(dataset, out, progress=progress, **settings)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    _show(result["rows"], reasons=explain)
    if out is not None:
        typer.echo(f"plan: {out}")


def _show(rows: list[dict[str, str]], *, reasons: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("choice", "value", *(["why"] if reasons else []))
    for row in rows:
        if reasons:
            # Names of labels and channels come from files: they are text, never markup.
            table.add_row(*(Text(row[key]) for key in ("choice", "value", "reason")))
        elif row["choice"] in _SHORT:
            table.add_row(Text(row["choice"]), Text(row["value"]))
    Console().print(table)
