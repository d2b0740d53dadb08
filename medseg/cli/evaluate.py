"""``medseg evaluate``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.options import SOME_FAILED, AsJson
from medseg.cli.progress import progress_bar, stderr_console
from medseg.core.errors import FileError, InputError


def evaluate_command(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="Folder of masks, or one mask.")
    ],
    references: Annotated[
        Path,
        typer.Argument(
            metavar="REFERENCES", help="Folder of references (a dataset's labelsTr), or one."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, metrics.json, metrics.csv and worst.png."),
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option(min=0.0, help="How far a border may be off for NSD, in mm.")
    ] = 1.0,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Leave references without a prediction out (else they score 0)."
        ),
    ] = False,
    cases: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[:FOLD]",
            help="Only these cases: a text file with an id per line, or the validation cases of "
            "a fold of a splits.json, for example splits.json:0.",
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="What to score, for example liver=1+2,spleen.")
    ] = None,
    lesions: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Labels whose single lesions are scored too; '*' for all."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Other predictions of the same cases, to compare with (Wilcoxon)."),
    ] = None,
    second_reader: Annotated[
        Path | None,
        typer.Option(help="A second reader's masks: how well two readers agree."),
    ] = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(help="Folder of probabilities (channels: background, labels): calibration."),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(help="A CSV of case and group, or a splits.json: figures for each."),
    ] = None,
    organs: Annotated[
        bool,
        typer.Option(
            "--organs",
            help="Every folder with masks is a case with a file per organ; they may overlap.",
        ),
    ] = False,
    resample: Annotated[
        str | None,
        typer.Option(help="'nearest': bring predictions on another grid to the reference's."),
    ] = None,
    ignore: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Voxels with this value in a reference count nowhere; by default those of the "
            "label 'ignore' of its dataset.json.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the scans, to draw them under the masks.")
    ] = None,
    tables: Annotated[
        str, typer.Option(help="Also write the summary as md and/or tex, for example md,tex.")
    ] = "",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases scored at once; one per core by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare masks with references: overlap, surface distance, volume, lesions.

    Masks are paired by their path below the folder. A label in neither mask of a case is
    left out there; a label in one mask only scores 0, and its distances are undefined.

    Example: medseg evaluate masks sample_data/abdomen/labelsTr --out evaluation
    """
    from medseg.workflows.evaluate import evaluate

    with progress_bar("evaluate") as progress:
        result = evaluate(
            predictions, references, out, tolerance_mm=tolerance_mm, allow_missing=allow_missing,
            cases=None if cases is None else read_case_ids(cases), labels=labels, lesions=lesions,
            against=against, second_reader=second_reader, probabilities=probabilities,
            groups=groups, organs=organs,
            resample=resample, ignore=ignore, images=images, workers=workers, progress=progress,
            tables=[kind.strip() for kind in tables.split(",") if kind.strip()],
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show_table(result)
        if "comparison" in result:
            _show_comparison(result["comparison"])
        if out is not None:
            typer.echo(f"Written: {out}")
    _tell_problems(result, allow_missing=allow_missing)
    if result["failed"] or (result["missing"] and not allow_missing):
        raise typer.Exit(SOME_FAILED)


def read_case_ids(text: str) -> list[str]:
    """Read case ids from ``FILE`` (an id per line) or ``splits.json:FOLD``.

    Raises:
        FileError: There is no such file, or it is not of either kind.
        InputError: It names no case, or the fold is not there.
    """
    name, colon, fold = text.rpartition(":")
    if not (colon and fold.isdecimal()):
        name, fold = text, ""
    path = Path(name)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"--cases {path}", expected="a text file of case ids, or splits.json:FOLD",
            got=getattr(error, "strerror", None) or "a file that is not text",
        ) from error  # fmt: skip
    is_split = path.suffix == ".json"
    ids = _fold_ids(content, fold or "0", path=path) if is_split else content.splitlines()
    found = [line.strip() for line in ids if line.strip()]
    if not found:
        raise InputError(f"--cases {path}", expected="at least one case id", got="none")
    return found


def _fold_ids(content: str, fold: str, *, path: Path) -> list[str]:
    """The validation cases of a fold in a ``splits.json``."""
    try:
        folds = json.loads(content)
    except ValueError as error:
        raise FileError(f"--cases {path}", expected="JSON", got=str(error)) from error
    if not isinstance(folds, list) or int(fold) >= len(folds):
        count = len(folds) if isinstance(folds, list) else 0
        raise InputError(
            f"--cases {path}:{fold}", expected=f"a list of folds that has number {fold}",
            got=f"{count} folds",
        )  # fmt: skip
    chosen = folds[int(fold)]
    ids = chosen.get("val", chosen.get("validation")) if isinstance(chosen, dict) else None
    if not isinstance(ids, list) or not all(isinstance(case, str) for case in ids):
        raise FileError(
            f"--cases {path}:{fold}", expected='a list of case ids under "val"', got="none"
        )
    return ids


def _show_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("label", title="Mean over cases; in brackets its 95 % interval")
    reader = result.get("second_reader")
    heads = ("Dice", "", *(("reader",) if reader else ()), "HD95 mm", "ASSD mm", "NSD", "cases")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for value, row in result["labels"].items():
        # Names come from files: they are text, never markup.
        name = str(row["name"]).replace("[", "\\[")
        ceiling = [reader["labels"].get(value, {})] if reader else []
        table.add_row(name, *_figures(row, ceiling), str(row["cases"]))
    table.add_section()
    mean = _figures(result["mean"], [reader["mean"]] if reader else [])
    table.add_row("mean", *mean, str(len(result["cases"])), style="bold")
    Console().print(table)


def _figures(row: dict[str, Any], ceiling: list[dict[str, Any]]) -> list[str]:
    low, high = row["dice_interval"]
    return [
        _figure(row["dice"], digits=3),
        "" if low is None or high is None else f"({low:.3f}-{high:.3f})",
        *(_figure(reader.get("dice"), digits=3) for reader in ceiling),
        _figure(row["hd95_mm"], digits=2),
        _figure(row["assd_mm"], digits=2),
        _figure(row["nsd"], digits=3),
    ]


def _show_comparison(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    against = str(found["against"]).replace("[", "\\[")
    table = Table("label", title=f"{against} - these predictions, on {found['cases']} cases")
    for head in ("Dice", "p", "effect", "higher", "lower", "HD95 mm"):
        table.add_column(head, justify="right", no_wrap=True)
    rows = [(row["name"], row) for row in found["labels"].values()] + [("mean", found["mean"])]
    for name, row in rows:
        dice = row["dice"]
        table.add_row(
            str(name).replace("[", "\\["), _figure(dice["mean_difference"], digits=4),
            _figure(dice["p_value"], digits=4), _figure(dice["rank_biserial"], digits=2),
            str(dice["higher"]), str(dice["lower"]),
            _figure(row["hd95_mm"]["mean_difference"], digits=2),
        )  # fmt: skip
    Console().print(table)


def _figure(value: float | None, *, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _tell_problems(result: dict[str, Any], *, allow_missing: bool) -> None:
    # Every failed case has been told in the log as it came.
    lines = [f"{len(result['failed'])} cases failed."] if result["failed"] else []
    if result["missing"]:
        fate = "left out" if allow_missing else "scored 0 (--cases names those to score)"
        lines.append(
            f"{len(result['missing'])} references without a prediction, {fate}: "
            f"{', '.join(result['missing'][:5])}{' ...' if len(result['missing']) > 5 else ''}"
        )
    if result["unpaired"]:
        lines.append(f"{len(result['unpaired'])} predictions without a reference.")
    for line in lines:
        stderr_console().print(line, markup=False, highlight=False)
