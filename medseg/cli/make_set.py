"""``medseg make-set``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import AsJson


def make_set_command(
    members: Annotated[
        list[Path], typer.Argument(help="Models, in the order in which their masks are painted.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the set goes.")],
    combine: Annotated[
        str,
        typer.Option("--combine", help="paint: later over earlier; mean: average probabilities."),
    ] = "paint",
    restore: Annotated[
        str, typer.Option("--restore", help="To the scan's grid: logits or labels-nearest.")
    ] = "logits",
    spacing: Annotated[
        str | None,
        typer.Option("--spacing", help="Bring the scan to this grid once, e.g. 1.5,1.5,1.5 mm."),
    ] = None,
    order: Annotated[
        int, typer.Option("--order", help="Of that: 0 nearest, 1 linear, 3 cubic.")
    ] = 3,
    maps: Annotated[
        Path | None,
        typer.Option(
            "--maps", help='JSON: for each model {"its label": "label of the set"}; else by name.'
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Join models to a set, which segments scans as one: more organs, or a mean of models.

    The scan is read once, and prepared once for models that prepare it in the same way.

    Example: medseg make-set runs/organs/model runs/vessels/model --out models/trunk
    """
    from medseg.workflows.make_set import make_set

    made = make_set(
        out,
        members,
        combine=combine,  # type: ignore[arg-type]  # checked there
        restore=restore,  # type: ignore[arg-type]
        spacing_mm=None if spacing is None else _numbers(spacing),
        order=order,  # type: ignore[arg-type]
        maps=maps,
    )
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    names = list(made["labels"].values())
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    typer.echo(f"{made['out']}: {made['members']} models, labels {shown}")


def _numbers(text: str) -> list[float]:
    from medseg.core.errors import SettingsError

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise SettingsError("--spacing", expected="three numbers in mm, e.g. 1.5,1.5,1.5", got=text)
    return values
