"""``medseg export``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import AsJson


class Format(StrEnum):
    """Formats that a model can be written in."""

    onnx = "onnx"


def export_command(
    model: Annotated[Path, typer.Argument(help="RUN/model of a finished training.")],
    out: Annotated[Path, typer.Option("--out", help="A file ending in .onnx.")],
    to: Annotated[Format, typer.Option("--to", help="The format to write.")] = Format.onnx,
    as_json: AsJson = False,
) -> None:
    """Write a model for other programs; it is compared with torch before it is written.

    The file holds the network alone, which takes tiles and gives logits; the plan (spacing,
    normalisation, size of tiles) stands in its metadata. Several members give one file each.

    Example: medseg export runs/hippocampus/model --to onnx --out hippocampus.onnx
    """
    from medseg.workflows.export import export

    result = export(model, out, to=to.value)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    for path in result["files"]:
        typer.echo(path)
    typer.echo(
        f"checked with {result['checked_with']}: logits off by {result['difference']:.1e} of "
        f"their range, {result['equal']:.3%} of classes equal to torch's"
    )
