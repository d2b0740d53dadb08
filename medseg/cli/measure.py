"""``medseg measure``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.progress import progress_bar

_SOME_FAILED = 3
_MOST_ROWS = 60
_SHOWN = (
    ("volume_ml", "ml"), ("diameter_axial_mm", "axial mm"), ("perpendicular_axial_mm", "across mm"),
    ("diameter_3d_mm", "3D mm"), ("mean", "mean"),
)  # fmt: skip


def measure_command(
    scans: Annotated[Path, typer.Argument(metavar="SCAN", help="Scan, or folder of scans.")],
    masks: Annotated[
        Path, typer.Argument(metavar="MASKS", help="Its mask, or folder of masks (same case ids).")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Table, .csv or .json: a row per case and label.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Measure only these, for example liver,spleen.")
    ] = None,
    radiomics: Annotated[
        bool, typer.Option("--radiomics", help="Also the features of the package pyradiomics.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases at once; one per core by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
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
        raise typer.Exit(_SOME_FAILED)


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
