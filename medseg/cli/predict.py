"""``medseg predict``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.options import SOME_FAILED
from medseg.cli.progress import progress_bar

_MOST_DOUBTED, _DOUBTED = 20, 0.8


def predict_command(
    model: Annotated[Path, typer.Argument(help="RUN/model of a finished training.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the masks.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Scans, or folders of them; DICOM: folders, zips.", show_default=False),
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", "--devices", help="auto, cpu, cuda:N; cuda:0,cuda:1; or all."),
    ] = "auto",
    labels: Annotated[
        str | None, typer.Option("--labels", help="Keep only these, e.g. liver,spleen.")
    ] = None,
    cases: Annotated[
        Path | None, typer.Option("--cases", help="CSV table: case, and a column per channel.")
    ] = None,
    series: Annotated[
        str | None,
        typer.Option("--series", help="Of each DICOM study: N, UID, PATTERN or auto."),
    ] = None,
    accept_gaps: Annotated[
        bool, typer.Option("--accept-gaps", help="Interpolate between uneven DICOM slices.")
    ] = False,
    grid: Annotated[
        str,
        typer.Option("--grid", help="Of tilted or uneven slices: own, regular, source or auto."),
    ] = "auto",
    save_scan: Annotated[
        bool, typer.Option("--save-scan", help="Write the scan too, on the grid of its mask.")
    ] = False,
    backend: Annotated[
        str, typer.Option("--backend", help="auto, torch, openvino, compile.")
    ] = "auto",
    max_memory: Annotated[
        str | None,
        typer.Option("--max-memory", help="Of RAM above the scan, e.g. 4GB; else 80 % of free."),
    ] = None,
    max_device_memory: Annotated[
        str | None, typer.Option("--max-device-memory", help="The same of the device.")
    ] = None,
    ring: Annotated[
        str, typer.Option("--ring", help="Precision of carried logits: auto, fp32 or fp16.")
    ] = "auto",
    skip_air: Annotated[
        bool, typer.Option("--skip-air", help="Run tiles of one single value once.")
    ] = False,
    probabilities: Annotated[
        str | None,
        typer.Option("--probabilities", help="Write those of these labels, e.g. liver,spleen."),
    ] = None,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Write where the model is unsure, 0 to 1.")
    ] = False,
    disagreement: Annotated[
        bool, typer.Option("--disagreement", help="Write where members and views differ.")
    ] = False,
    maps_as: Annotated[
        str, typer.Option("--maps-as", help="Numbers in those files: uint8 or float16.")
    ] = "uint8",
    per_label: Annotated[
        bool, typer.Option("--per-label", help="Also a mask for each label.")
    ] = False,
    contours: Annotated[
        bool, typer.Option("--contours", help="Also outlines, in the --contour-format.")
    ] = False,
    contour_format: Annotated[
        str, typer.Option("--contour-format", help="json; of pictures also geojson, svg, coco.")
    ] = "json",
    meshes: Annotated[
        bool, typer.Option("--meshes", help="Also surfaces, in the --mesh-format.")
    ] = False,
    mesh_format: Annotated[
        str, typer.Option("--mesh-format", help="stl, ply, obj, vtp, or glb for one scene.")
    ] = "stl",
    measure: Annotated[
        bool, typer.Option("--measure", help="Also a table: volumes, diameters, intensities.")
    ] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Also a picture.")] = False,
    qc: Annotated[
        bool, typer.Option("--qc", help="Judge each mask: trust and reasons, worst first.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try scans again that failed before.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Work on at most N cases.", metavar="N")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Part i of n, e.g. 1/8: for job arrays.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Known scans by content, not by size and time.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Tell of each scan's memory, and more.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Segment scans: DIR/<case>.nii.gz in each scan's own geometry, with a JSON sidecar.

    Folders, tables and several scans: DIR/.medseg/ remembers each case, so that the same command
    goes on where it stopped, and works only on what is missing or changed. One scan is always
    segmented anew. A case that fails does not stop the others; the exit code is then 3.

    Example: medseg predict runs/hippocampus/model scans/ --out masks/
    """
    from medseg.batch.local import BatchOptions, predict_batch
    from medseg.workflows.predict import predict

    if verbose:
        logging.getLogger("medseg").setLevel(logging.DEBUG)
    batch = BatchOptions(retry_failed, limit, shard, verify)
    with progress_bar("Segmenting", unit="cases") as progress:
        options: dict[str, Any] = {
            "device": device, "labels": labels, "cases": cases, "progress": progress,
            "series": series, "accept_gaps": accept_gaps, "grid": grid, "save_scan": save_scan,
            "backend": backend, "ring": ring, "skip_air": skip_air,
            "probabilities": probabilities, "entropy": entropy, "disagreement": disagreement,
            "maps_as": maps_as, "per_label": per_label,
            "contours": contour_format if contours else "",
            "meshes": mesh_format if meshes else "", "measure": measure, "preview": preview,
            "qc": qc,
            "max_memory_bytes": _bytes(max_memory, "--max-memory"),
            "max_device_memory_bytes": _bytes(max_device_memory, "--max-device-memory"),
        }  # fmt: skip
        if batch == BatchOptions() and cases is None and _is_one_file(inputs):
            summary = predict(model, inputs or [], out, **options)
        else:
            summary = predict_batch(model, inputs or [], out, batch=batch, **options)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        _tell(summary, out)
    if summary["failed"]:
        raise typer.Exit(SOME_FAILED)


def _bytes(text: str | None, name: str) -> int | None:
    from medseg.workflows.options import parse_bytes

    return None if text is None else parse_bytes(text, name=name)


def _is_one_file(inputs: list[Path] | None) -> bool:
    return not inputs or (len(inputs) == 1 and not inputs[0].is_dir())


def _tell(summary: dict[str, Any], out: Path) -> None:
    kept, left = summary.get("kept", 0), summary.get("left", 0)
    notes = [f"{kept} from before"] * bool(kept) + [f"{left} left"] * bool(left)
    note = f" ({', '.join(notes)})" if notes else ""
    typer.echo(f"{len(summary['done'])} masks in {out}{note}, {summary['seconds']:.1f} s")
    judged = summary.get("trust", {}).items()
    doubted = [(case, one) for case, one in judged if one["reasons"] or one["trust"] < _DOUBTED]
    for case, one in doubted[:_MOST_DOUBTED]:
        why = "; ".join(one["reasons"]) or "nothing odd by itself"
        typer.echo(f"trust {one['trust']:.2f}: {case}: {why}")
    if len(doubted) > _MOST_DOUBTED:
        typer.echo(f"and {len(doubted) - _MOST_DOUBTED} more with something odd; --json lists all")
    for case, reason in summary["failed"].items():
        typer.echo(f"failed: {case}: {reason}", err=True)
