"""``medseg mesh``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import SOME_FAILED, AsJson, Masks, Workers
from medseg.cli.progress import progress_bar


def mesh_command(
    masks: Masks,
    out: Annotated[Path, typer.Option("--out", help="Folder for DIR/<case>/<label>.stl.")],
    kind: Annotated[str, typer.Option("--format", help="stl, ply, obj, vtp or glb.")] = "stl",
    scene: Annotated[
        bool, typer.Option("--scene", help="All labels in one file; GLB always has them so.")
    ] = False,
    smoothing: Annotated[
        int, typer.Option(min=0, max=1000, help="Turns of smoothing; 0 keeps the voxels' sides.")
    ] = 12,
    reduction: Annotated[
        float, typer.Option(help="Share of triangles to take away, for example 0.8.")
    ] = 0.0,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Write the surfaces of masks, in RAS+ mm; smooth, and of the volume that the voxels have.

    Example: medseg mesh masks --out meshes --format glb
    """
    from medseg.postprocess.surfaces import MeshOptions
    from medseg.workflows.surfaces import make_meshes

    options = MeshOptions(smoothing, reduction)
    with progress_bar("mesh") as progress:
        result = make_meshes(
            masks, out, kind=kind, scene=scene, options=options, workers=workers, progress=progress
        )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        files = sum(len(paths) for paths in result["cases"].values())
        typer.echo(f"{files} files of {len(result['cases'])} masks in {out}")
    if result["failed"]:
        raise typer.Exit(SOME_FAILED)
