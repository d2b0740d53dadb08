"""``medseg info``"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.options import AsJson

# Degrees of gantry tilt that are worth telling; less comes from rounded positions.
_TILTED = 0.1


def info_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|SCAN|STUDY", help="A model, a scan, or a DICOM folder or zip."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Say what a scan or a model is.

    Example: medseg info scan.nii.gz
    """
    from medseg.workflows.info import info

    facts = info(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    if facts["kind"] == "study":
        show_series(facts["series"])
        for mask in facts.get("masks", ()):
            names = ", ".join(f"{name} ({value})" for value, name in mask["labels"].items())
            typer.echo(f"mask {mask['file']}: {names or mask['fault']}")
        return
    for line in fact_lines(facts):
        typer.echo(line)


def show_series(series: list[dict[str, Any]]) -> None:
    """The series of a study as a table, one row each."""
    from rich.console import Console
    from rich.table import Table

    several = len({row["study"] for row in series}) > 1
    columns = ("series", "modality", "description", "slices", "spacing mm", "axes", "gaps")
    first = ("study",) if several else ()
    table = Table(*first, *columns, "reasons against", box=None, pad_edge=False)
    for row in series:
        spacing = " x ".join(f"{side:.4g}" for side in row["spacing_mm"] or ())
        gaps = row["gaps"] or ("even" if row["spacing_mm"] and row["slices"] > 1 else "")
        tilt = f" tilt {row['tilt_degrees']:.1f}" if row["tilt_degrees"] >= _TILTED else ""
        table.add_row(
            *((str(row["study"]),) if several else ()),
            row["series"],
            row["modality"],
            row["description"],
            str(row["slices"]),
            spacing,
            row["axis_codes"] + tilt,
            gaps,
            "; ".join(row["reasons_against"]),
        )
    # Wide where the output is a file: a script must not get broken lines.
    wide = None if sys.stdout.isatty() else 240
    Console(markup=False, highlight=False, width=wide).print(table)


def fact_lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    """One line per fact; facts within facts are indented."""
    lines = []
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", *fact_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{indent}{key}", *(f"{indent}  {_text(part)}" for part in value)]
        else:
            lines.append(f"{indent}{key:<{width}}  {_text(value)}")
    return lines


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        parts = (f"({_text(p)})" if isinstance(p, list | tuple) else _text(p) for p in value)
        return ", ".join(parts) or "-"
    if isinstance(value, dict):
        return "; ".join(f"{key} {_text(part)}" for key, part in value.items()) or "-"
    return "-" if value in (None, "") else str(value)
