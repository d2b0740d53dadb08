"""``medseg measure``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from medseg.cli.options import SOME_FAILED, AsJson, MasksOfScans, Scans, Table, Workers
from medseg.cli.progress import progress_bar

_MOST_ROWS = 60
_SHOWN = (
    ("volume_ml", "ml"), ("diameter_axial_mm", "axial mm"), ("perpendicular_axial_mm", "across mm"),
    ("diameter_3d_mm", "3D mm"), ("mean", "mean"),
)  # fmt: skip


def measure_command(
    scans: Scans,
    masks: MasksOfScans,
    out: Table = None,
    labels: Annotated[
        str | None, typer.Option(help="Measure only these, for example liver,spleen.")
    ] = None,
    radiomics: Annotated[
        bool, typer.Option("--radiomics", help="Also the features of the package pyradiomics.")
    ] = False,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Measure labels: volume, surface, place, diameters, intensities; says what is cut off.

    A label at the edge of the scan is "cut off": its figures are those of the visible part.

    Example: medseg measure scans masks --out table.csv
    """
    from medseg.workflows.measure import measure

    with progress_bar("measure") as progress:
        result = measure(
            scans, masks, out, labels=labels, radiomics=radiomics, workers=workers,
            progress=progress,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show(result["rows"])
        typer.echo(f"{len(result['rows'])} rows{f' in {out}' if out is not None else ''}")
    if result["failed"]:
        raise typer.Exit(SOME_FAILED)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("case", "label", "status")
    for _, head in _SHOWN:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows[:_MOST_ROWS]:
        sides = f" ({row['cut_off_at']})" if row["cut_off_at"] else ""
        figures = [row.get(column) for column, _ in _SHOWN]
        # Names come from files: they are text, never markup.
        texts = [Text(str(text)) for text in (row["case"], row["label"], f"{row['status']}{sides}")]
        table.add_row(*texts, *("-" if figure is None else f"{figure:.1f}" for figure in figures))
    Console().print(table)
    if len(rows) > _MOST_ROWS:
        typer.echo(f"{len(rows) - _MOST_ROWS} more: see --out or --json.")
