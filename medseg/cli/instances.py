"""``medseg instances``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import SOME_FAILED, AsJson, Masks, Workers
from medseg.cli.progress import progress_bar


def instances_command(
    masks: Masks,
    out: Annotated[
        Path, typer.Option("--out", help="Another folder: numbered masks and instances.csv.")
    ],
    labels: Annotated[
        str | None, typer.Option(help="Only these, for example lesion,node; or their values.")
    ] = None,
    scans: Annotated[
        Path | None, typer.Option(help="Their scans (same case ids), for mean intensities.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="watershed cuts touching bodies at their necks; components takes what hangs "
            "together for one."
        ),
    ] = "watershed",
    neck: Annotated[
        float, typer.Option(help="Cut necks that are at most this share of the lesser body wide.")
    ] = 0.85,
    min_volume: Annotated[
        str, typer.Option(help="Leave smaller ones out: 50mm3; of flat images 30mm2.")
    ] = "0",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Number single lesions, vertebrae or nuclei by their place, and measure each.

    Example: medseg instances masks --out instances --labels lesion --scans scans
    """
    from medseg.core.errors import SettingsError
    from medseg.postprocess.instances import SPLITS, InstanceOptions
    from medseg.workflows.instances import TABLE, least_of, make_instances

    kind = next((known for known in SPLITS if known == split), None)
    if kind is None:
        raise SettingsError("--split", expected=" or ".join(SPLITS), got=repr(split))
    options = InstanceOptions(kind, neck, least_of(min_volume))
    with progress_bar("instances") as progress:
        result = make_instances(
            masks, out, scans=scans, labels=labels, options=options, workers=workers,
            progress=progress,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        count = len(result["rows"])
        typer.echo(f"{count} instances in {len(result['cases'])} masks: {out / TABLE}")
    if result["failed"]:
        raise typer.Exit(SOME_FAILED)
