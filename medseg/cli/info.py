"""``medseg info``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def info_command(
    path: Annotated[Path, typer.Argument(metavar="MODEL|SCAN", help="A model folder or a scan.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Say what a scan or a model is.

    Example: medseg info scan.nii.gz
    """
    from medseg.workflows.info import info

    facts = info(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for line in fact_lines(facts):
        typer.echo(line)


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
