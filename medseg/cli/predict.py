"""``medseg predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.progress import progress_bar


def predict_command(
    model: Annotated[Path, typer.Argument(help="RUN/model of a finished training.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the masks.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Scans, or folders of them; DICOM: folders, zips.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    labels: Annotated[
        str | None, typer.Option("--labels", help="Keep only these, e.g. liver,spleen.")
    ] = None,
    cases: Annotated[
        Path | None, typer.Option("--cases", help="CSV table: case, and a column per channel.")
    ] = None,
    series: Annotated[
        str | None,
        typer.Option("--series", help="Of each DICOM study: N, UID, PATTERN or auto."),
    ] = None,
    accept_gaps: Annotated[
        bool, typer.Option("--accept-gaps", help="Interpolate between uneven DICOM slices.")
    ] = False,
    grid: Annotated[
        str,
        typer.Option("--grid", help="Of tilted or uneven slices: own, regular, source or auto."),
    ] = "auto",
    save_scan: Annotated[
        bool, typer.Option("--save-scan", help="Write the scan too, on the grid of its mask.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Segment scans: DIR/<case>.nii.gz in each scan's own geometry, with a JSON sidecar.

    A case that fails does not stop the others; the exit code is then 3.

    Example: medseg predict runs/hippocampus/model scans/ --out masks/
    """
    from medseg.workflows.predict import predict

    with progress_bar("Segmenting") as progress:
        summary = predict(
            model, inputs or [], out, device=device, labels=labels, cases=cases, progress=progress,
            series=series, accept_gaps=accept_gaps, grid=grid, save_scan=save_scan,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        count = len(summary["done"])
        typer.echo(f"{count} masks in {out}, {summary['seconds']:.1f} s")
        for case, reason in summary["failed"].items():
            typer.echo(f"failed: {case}: {reason}", err=True)
    if summary["failed"]:
        raise typer.Exit(3)
