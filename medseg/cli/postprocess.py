"""``medseg postprocess``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.options import SOME_FAILED, AsJson, Masks, Workers
from medseg.cli.progress import progress_bar
from medseg.core.errors import SettingsError


def postprocess_command(
    masks: Masks,
    out: Annotated[
        Path, typer.Option("--out", help="Another folder; with --learn a file ending in .json.")
    ],
    steps: Annotated[
        str | None,
        typer.Option(
            help="Steps with ';' between them: largest:liver, largest:liver+tumour, "
            "largest:kidney=2, min-volume:lesion=50mm3, nearest:liver=10,20,-30 (mm, RAS), "
            "nearest:a=b, inside:tumour=liver, fill-holes:*, fill-holes-slices:*, open:a=2mm, "
            "close:a=2mm, smooth:a=2mm, majority:*=2mm; or a JSON that --learn wrote."
        ),
    ] = None,
    learn: Annotated[
        Path | None,
        typer.Option(
            metavar="REFERENCES",
            help="Learn the steps: MASKS are predictions of cases that were not trained on.",
        ),
    ] = None,
    connectivity: Annotated[
        int, typer.Option(help="Neighbours that hang together: 6, 18, 26; flat masks 4, 8.")
    ] = 26,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Clean masks: largest regions, small parts, holes; type, header and grid stay.

    With --learn, find out which of these steps raise the Dice of predictions.

    Example: medseg postprocess masks --out cleaned --steps "largest:liver; fill-holes:*"
    """
    if (steps is None) == (learn is None):
        raise SettingsError(
            "postprocess", expected="one of --steps and --learn",
            got="neither" if steps is None else "both",
        )  # fmt: skip
    if learn is not None:
        failed = _learn(masks, learn, out, as_json=as_json)
    else:
        from medseg.workflows.postprocess import postprocess

        with progress_bar("postprocess") as progress:
            result = postprocess(
                masks, out, steps=steps or "", connectivity=connectivity, workers=workers,
                progress=progress,
            )  # fmt: skip
        failed = result["failed"]
        if as_json:
            typer.echo(json.dumps(result, indent=2))
        else:
            typer.echo(f"{len(result['cases'])} masks, {len(failed)} failed: {out}")
    if failed:
        raise typer.Exit(SOME_FAILED)


def _learn(predictions: Path, references: Path, out: Path, *, as_json: bool) -> dict[str, Any]:
    """Learn the steps, tell them, and give the cases that failed."""
    from medseg.workflows.postprocess import learn_chain

    with progress_bar("learn") as progress:
        result = learn_chain(predictions, references, out, progress=progress)
    failed: dict[str, Any] = result["failed"]
    if as_json:
        shown = {key: result[key] for key in ("steps", "cases", "failed")}
        typer.echo(json.dumps(shown, indent=2))
        return failed
    for step in result["steps"]:
        typer.echo(f"{step['step']}: {step['evidence']}")
    kept = f"{len(result['steps'])} steps" if result["steps"] else "no step helps beyond noise"
    typer.echo(f"{result['cases']} cases, {len(failed)} failed; {kept}: {out}")
    return failed
