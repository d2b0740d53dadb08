"""``medseg preview``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.options import SOME_FAILED, AsJson, Workers
from medseg.cli.progress import phase_bars, progress_bar

_PHASES = {
    "check": "Checking cases", "fingerprint": "Reading intensities", "preprocess": "Preprocessing",
}  # fmt: skip


def preview_command(
    scans: Annotated[
        Path,
        typer.Argument(metavar="SCAN", help="Scan, or folder of scans; a dataset if --augmented."),
    ],
    masks: Annotated[
        Path | None,
        typer.Argument(metavar="[MASK]", help="Its mask, or folder of masks (same case ids)."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="NAME.png for one case or --augmented, else a folder.")
    ] = Path("preview.png"),
    montage: Annotated[
        bool, typer.Option("--montage/--no-montage", help="All cases on sheets, too.")
    ] = True,
    workers: Workers = None,
    augmented: Annotated[
        bool, typer.Option("--augmented", help="Draw the batches that training makes of a dataset.")
    ] = False,
    batches: Annotated[
        int, typer.Option("--batches", min=1, max=40, help="With --augmented: how many.")
    ] = 4,
    plan_file: Annotated[
        str | None, typer.Option("--plan", help="With --augmented: a plan of medseg plan.")
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --augmented, e.g. plan.training.batch_size=4."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="With --augmented: other draws.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw masks on their scans: planes through all labels and each, brightest, 3D view.

    With --augmented: patches as the network sees them, and what was done to each.

    Example: medseg preview scans masks --out previews
    """
    if augmented:
        settings = {"plan_file": plan_file, "set": pairs or [], "seed": seed}
        _augmented(scans, masks, out, batches=batches, settings=settings, as_json=as_json)
        return
    from medseg.core.errors import SettingsError
    from medseg.workflows.preview import preview

    if masks is None:
        raise SettingsError(
            "medseg preview",
            expected="a scan and its mask",
            got=f"'{scans}' alone",
            cure="Name the mask, or draw training batches of a dataset with --augmented.",
        )
    with progress_bar("preview") as progress:
        result = preview(scans, masks, out, montage=montage, workers=workers, progress=progress)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        sheets = f", all on {', '.join(result['montage'])}" if result["montage"] else ""
        typer.echo(f"{len(result['cases'])} pictures: {out}{sheets}")
    if result["failed"]:
        raise typer.Exit(SOME_FAILED)


def _augmented(
    dataset: Path,
    masks: Path | None,
    out: Path,
    *,
    batches: int,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    from medseg.core.errors import SettingsError
    from medseg.workflows.preview_batches import preview_batches

    if masks is not None:
        raise SettingsError(
            "--augmented", expected="one dataset", got=f"'{masks}' besides '{dataset}'"
        )
    with phase_bars(_PHASES) as progress:
        result = preview_batches(dataset, out, batches=batches, progress=progress, **settings)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(f"{result['batches']} batches: {out}")
