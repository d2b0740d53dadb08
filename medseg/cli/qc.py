"""``medseg qc``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.progress import progress_bar

_SOME_FAILED = 3
_MOST_SHOWN = 40


def qc_command(
    model: Annotated[Path, typer.Argument(help="A trained model, which knows what is normal.")],
    scans: Annotated[Path, typer.Argument(metavar="SCAN", help="Scan, or folder of scans.")],
    masks: Annotated[
        Path, typer.Argument(metavar="MASKS", help="Its mask, or folder of masks (same case ids).")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Table, .csv or .json: a row per case and label.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases at once; one per core by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
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
        raise typer.Exit(_SOME_FAILED)
