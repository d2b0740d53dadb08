"""``medseg convert``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import AsJson
from medseg.cli.progress import progress_bar


class Layout(StrEnum):
    """Layouts that can be written."""

    msd = "msd"
    nnunet = "nnunet"
    table = "table"


def convert_command(
    dataset: Annotated[Path, typer.Argument(help="Folder or table, of any layout.")],
    to: Annotated[Layout, typer.Option("--to", help="The layout to write.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    link: Annotated[
        bool, typer.Option("--link", help="Link to files instead of copying them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a dataset in another layout; the source is never touched.

    Files are copied (or linked) where the layout allows, else written anew with the same voxels.

    Example: medseg convert data/Task04 --to nnunet --out data/Dataset004
    """
    from medseg.workflows.convert import convert

    with progress_bar("convert") as progress:
        result = convert(dataset, out, to=to.value, link=link, progress=progress)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    typer.echo(
        f"{result['cases']} cases from {result['from']} to {result['to']}: {result['out']} "
        f"({result['copied']} files {'linked' if link else 'copied'}, "
        f"{result['rewritten']} written anew)"
    )
    if result["renumbered"]:
        pairs = ", ".join(f"{old} is now {new}" for old, new in result["renumbered"].items())
        typer.echo(f"Label values without gaps, as nnU-Net wants them: {pairs}")
