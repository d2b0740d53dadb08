"""``medseg check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.options import SOME_FAILED, AsJson
from medseg.cli.progress import progress_bar

_MOST_ROWS = 100
_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


def check_command(
    dataset: Annotated[Path, typer.Argument(help="Folder or table, of any layout.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for check.json and check.html, and for the mended copy."),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Write a mended copy to --out; the dataset stays as it is."),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases read at once; one per core by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with a dataset: files, grids, labels, copies, outliers, flipped masks.

    Exit code 3 tells that there are errors (with --fix: that cases had to be left out).

    Example: medseg check data/Task04 --fix --out data/Task04_mended
    """
    from medseg.workflows.check import check

    with progress_bar("check") as progress:
        result = check(dataset, out, fix=fix, workers=workers, progress=progress)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show(result)
        if out is not None:
            typer.echo(f"Written: {out}")
    failed = result["mended"]["left_out"] if fix else result["counts"]["error"]
    if failed:
        raise typer.Exit(SOME_FAILED)


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = ", ".join(f"{number} {name}s" for name, number in result["counts"].items())
    typer.echo(f"{result['dataset']} ({result['layout']}, {result['cases']} cases): {counts}")
    findings = result["findings"]
    if findings:
        table = Table("severity", "kind", "case", "expected", "found")
        for row in findings[:_MOST_ROWS]:
            # Names come from files: they are text, never markup.
            cells = [row["kind"], row["case"] or "dataset", row["expected"], row["got"]]
            colour = _COLOURS[row["severity"]]
            table.add_row(Text(row["severity"], style=colour), *(Text(cell) for cell in cells))
        Console().print(table)
    if len(findings) > _MOST_ROWS:
        typer.echo(f"{len(findings) - _MOST_ROWS} more: see check.json or --json.")
    if "mended" in result:
        mended = result["mended"]
        typer.echo(f"{len(mended['changes'])} changes, {len(mended['left_out'])} cases left out")
