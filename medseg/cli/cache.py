"""``medseg cache list``, ``clean`` and ``build``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.progress import phase_bars

_PHASES = {
    "check": "Checking cases", "fingerprint": "Reading intensities", "preprocess": "Preprocessing",
}  # fmt: skip

cache_app = typer.Typer(
    help="Preprocessed cases on disk: make them, see them, remove them.", no_args_is_help=True
)
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@cache_app.command("list")
def list_command(
    folder: Annotated[
        Path, typer.Argument(metavar="[RUN|FOLDER]", help="Searched with all that lies below it.")
    ] = Path(),
    as_json: _AsJson = False,
) -> None:
    """List the caches of runs: cases, size, age.

    Example: medseg cache list runs
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from medseg.workflows.cache import listing

    rows = listing(folder)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("folder", "plan")
    for name in ("cases", "damaged", "size", "made"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = (row["cases"], row["damaged"], _size(row["bytes"]), row["made"])
        table.add_row(Text(row["folder"]), row["plan"], *map(str, figures))
    Console().print(table)


@cache_app.command("clean")
def clean_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="Whose cached cases go.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Remove cached cases, and nothing else; training with --resume makes them anew.

    Example: medseg cache clean runs/hippocampus
    """
    from medseg.workflows.cache import clean, listing

    rows = listing(folder)
    size = _size(sum(row["bytes"] for row in rows))
    cases = sum(row["cases"] for row in rows)
    if cases and not yes:
        typer.confirm(f"Remove {cases} cached cases ({size}) in {folder}?", abort=True)
    result = clean(folder)
    typer.echo(
        json.dumps(result)
        if as_json
        else f"{result['cases']} cases removed, {_size(result['bytes'])} freed"
    )


@cache_app.command("build")
def build_command(
    dataset: Annotated[Path, typer.Argument(help="Folder or table, of any layout.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder; the cases go to RUN/cache.")],
    plan_file: Annotated[
        str | None, typer.Option("--plan", help="A plan of medseg plan; else one is made.")
    ] = None,
    fold: Annotated[
        str | None, typer.Option("--fold", help="Whose cases: 0 to 4, all or all-data.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Select and merge, e.g. liver=1+2,tumour=2.")
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Preprocess a dataset before it is trained on, on a machine without a GPU for example.

    Example: medseg cache build data/Task04 --out runs/hippocampus --plan plan.json
    """
    from medseg.workflows.cache import build

    settings: dict[str, Any] = {"plan_file": plan_file, "fold": fold, "labels": labels}
    with phase_bars(_PHASES) as progress:
        result = build(dataset, out, progress=progress, **settings)
    typer.echo(
        json.dumps(result)
        if as_json
        else f"{result['cases']} cases, {_size(result['bytes'])}: {result['folder']}"
    )


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
