"""``medseg qc``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import SOME_FAILED, AsJson, MasksOfScans, Scans, Table, Workers
from medseg.cli.progress import progress_bar

_MOST_SHOWN = 40


def qc_command(
    model: Annotated[Path, typer.Argument(help="A trained model, which knows what is normal.")],
    scans: Scans,
    masks: MasksOfScans,
    out: Table = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Judge masks from anywhere: which not to trust, and why; the least trusted first.

    No network runs. For masks that are yet to be made: medseg predict --qc, which knows more.

    Example: medseg qc runs/abdomen/model scans masks --out trust.csv
    """
    from medseg.workflows.judge_masks import judge_masks

    with progress_bar("judge") as progress:
        result = judge_masks(model, scans, masks, out, workers=workers, progress=progress)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        for case, one in list(result["cases"].items())[:_MOST_SHOWN]:
            typer.echo(f"trust {one['trust']:.2f}: {case}: {'; '.join(one['reasons']) or '-'}")
        more = len(result["cases"]) - _MOST_SHOWN
        if more > 0:
            typer.echo(f"{more} more: see --out or --json.")
    if result["failed"]:
        raise typer.Exit(SOME_FAILED)
