"""``medseg import-nnunet``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import AsJson


class Checkpoint(StrEnum):
    """Which weights of a fold."""

    final = "final"
    best = "best"


def import_nnunet_command(
    folder: Annotated[
        Path, typer.Argument(help="Trained nnU-Net v2 model: plans.json, dataset.json, fold_*.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the model package goes.")],
    folds: Annotated[
        str | None,
        typer.Option(
            "--folds", help="0,1,2 or all. Without it: every numbered fold, else fold_all."
        ),
    ] = None,
    checkpoint: Annotated[
        Checkpoint, typer.Option("--checkpoint", help="Weights of the last epoch or the best.")
    ] = Checkpoint.final,
    previous: Annotated[
        Path | None,
        typer.Option(
            "--previous", help="First stage of a cascade, where it does not lie beside FOLDER."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a model package of a trained nnU-Net v2 model; it gives the same masks.

    Checkpoints are read without running anything that they hold. 'medseg predict' also takes
    such a folder as it is.

    Example: medseg import-nnunet nnUNetTrainer__nnUNetPlans__3d_fullres --out models/organs
    """
    from medseg.workflows.import_nnunet import import_nnunet

    made = import_nnunet(folder, out, folds=folds, checkpoint=checkpoint.value, previous=previous)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    names = made["labels"]
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    members = f"{made['members']} folds" if made["members"] > 1 else "one fold"
    typer.echo(
        f"{made['out']}: {made['configuration']} of {members}, "
        f"channels {', '.join(made['channels'])}, labels {shown}"
    )
