"""``medseg preview``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.progress import progress_bar

_SOME_FAILED = 3


def preview_command(
    scans: Annotated[Path, typer.Argument(metavar="SCAN", help="Scan, or folder of scans.")],
    masks: Annotated[
        Path, typer.Argument(metavar="MASK", help="Its mask, or folder of masks (same case ids).")
    ],
    out: Annotated[Path, typer.Option("--out", help="NAME.png for one case, else a folder.")],
    montage: Annotated[
        bool, typer.Option("--montage/--no-montage", help="All cases on sheets, too.")
    ] = True,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases at once; one per core by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Draw masks on their scans: planes through all labels and each, brightest, 3D view.

    Example: medseg preview scans masks --out previews
    """
    from medseg.workflows.preview import preview

    with progress_bar("preview") as progress:
        result = preview(scans, masks, out, montage=montage, workers=workers, progress=progress)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        sheets = f", all on {', '.join(result['montage'])}" if result["montage"] else ""
        typer.echo(f"{len(result['cases'])} pictures: {out}{sheets}")
    if result["failed"]:
        raise typer.Exit(_SOME_FAILED)
