"""Arguments and options that several commands share, and what the exit code 3 means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Exit code: finished, but some cases failed.
SOME_FAILED = 3

Masks = Annotated[Path, typer.Argument(metavar="MASKS", help="Folder of masks, or one mask.")]
Scans = Annotated[Path, typer.Argument(metavar="SCAN", help="Scan, or folder of scans.")]
MasksOfScans = Annotated[
    Path, typer.Argument(metavar="MASKS", help="Its mask, or folder of masks (same case ids).")
]
Table = Annotated[Path | None, typer.Option(help="Table, .csv or .json: a row per case and label.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Cases at once; one per core by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
