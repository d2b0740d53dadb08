"""``medseg postprocess``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.progress import progress_bar

_SOME_FAILED = 3


def postprocess_command(
    masks: Annotated[Path, typer.Argument(metavar="MASKS", help="Folder of masks, or one mask.")],
    out: Annotated[Path, typer.Option("--out", help="Another folder, for the cleaned masks.")],
    steps: Annotated[
        str,
        typer.Option(
            help="Steps with ';' between them: largest:liver, largest:liver+tumour, "
            "largest:kidney=2, min-volume:lesion=50mm3, nearest:liver=10,20,-30 (mm, RAS), "
            "nearest:a=b, inside:tumour=liver, fill-holes:*, fill-holes-slices:*, open:a=2mm, "
            "close:a=2mm."
        ),
    ],
    connectivity: Annotated[
        int, typer.Option(help="Neighbours that hang together: 6, 18, 26; flat masks 4, 8.")
    ] = 26,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Clean masks: largest regions, small parts, holes; type, header and grid stay.

    Example: medseg postprocess masks --out cleaned --steps "largest:liver; fill-holes:*"
    """
    from medseg.workflows.postprocess import postprocess

    with progress_bar("postprocess") as progress:
        result = postprocess(masks, out, steps=steps, connectivity=connectivity, progress=progress)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(f"{len(result['cases'])} masks, {len(result['failed'])} failed: {out}")
    if result["failed"]:
        raise typer.Exit(_SOME_FAILED)
