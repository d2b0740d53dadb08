"""``medseg contours``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import SOME_FAILED, AsJson, Masks, Workers
from medseg.cli.progress import progress_bar


def contours_command(
    masks: Masks,
    out: Annotated[Path, typer.Option("--out", help="Folder for DIR/<case>.json.")],
    kind: Annotated[
        str, typer.Option("--format", help="json (mm); of pictures also geojson, svg, coco.")
    ] = "json",
    plane: Annotated[str, typer.Option(help="axial, coronal or sagittal.")] = "axial",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Write the outlines of masks, slice by slice, as polygons with holes.

    Example: medseg contours masks --out outlines --format json
    """
    from medseg.workflows.surfaces import make_contours

    with progress_bar("contours") as progress:
        result = make_contours(
            masks, out, kind=kind, plane=plane, workers=workers, progress=progress
        )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(f"{len(result['cases'])} masks: {out}")
    if result["failed"]:
        raise typer.Exit(SOME_FAILED)
