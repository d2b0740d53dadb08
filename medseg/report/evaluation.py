"""The page of an evaluation: ``metrics.json`` and pictures in, blocks for the page out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.report.charts import Strip, bland_altman, strip_chart
from medseg.report.html import Block, Chart, Heading, Links, Overlay, Table, Text, render_page

Result = Mapping[str, Any]

# Name in metrics.json, head of the column, digits, factor.
_COLUMNS = (
    ("dice", "Dice", 3, 1.0), ("iou", "IoU", 3, 1.0), ("precision", "Precision", 3, 1.0),
    ("recall", "Recall", 3, 1.0), ("kappa", "Kappa", 3, 1.0),
    ("hd95_mm", "HD95 mm", 2, 1.0), ("assd_mm", "ASSD mm", 2, 1.0),
    ("nsd", "NSD", 3, 1.0), ("nsd_voxel_border", "NSD (border)", 3, 1.0),
    ("volume_difference", "Volume %", 1, 100.0), ("lesion_f1", "Lesion F1", 3, 1.0),
    ("panoptic_quality", "PQ", 3, 1.0),
)  # fmt: skip
_CHARTS = (("dice", "Dice", ""), ("nsd", "Surface Dice (NSD)", ""), ("hd95_mm", "HD95", "mm"))
# The page is too narrow for all columns in one table.
_FIRST = ("dice", "hd95_mm", "assd_mm", "nsd", "nsd_voxel_border", "volume_difference")
_FURTHER = ("iou", "precision", "recall", "kappa", "lesion_f1", "panoptic_quality")
_MOST_ROWS = 20


@dataclass(frozen=True)
class ShownCase:
    """A case to be shown in layers: how it stands out, the scan, and each mask."""

    caption: str
    base: bytes
    layers: Sequence[tuple[str, bytes]]


def evaluation_page(result: Result, shown: Sequence[ShownCase], *, files: Sequence[str]) -> str:
    """Write the page of an evaluation.

    Args:
        result: As ``metrics.json`` holds it.
        shown: Cases to be shown, the most important first.
        files: Names of the files that lie beside the page.

    Returns:
        HTML, self-contained, safe whatever names the files had.
    """
    blocks: list[Block] = [
        Text(_in_short(result)),
        Links(files),
        *_calibration(result),
        *_problems(result),
    ]
    blocks += [
        Heading("Summary"),
        Table(*_in_two_lines(*summary_rows(result, _FIRST)), figures=True),
        Table(*_in_two_lines(*summary_rows(result, _FURTHER)), figures=True),
        Text(
            "Mean over cases; in brackets its 95 % bootstrap interval. Labels in neither mask of "
            "a case are left out there.", dim=True,
        ),
    ]  # fmt: skip
    blocks += _comparison(result) + _groups(result) + _charts(result)
    if shown:
        blocks.append(Heading("Worst and best cases"))
        blocks += [Overlay(case.base, case.layers, case.caption) for case in shown]
    definitions = [(key, str(value)) for key, value in result["definitions"].items()]
    blocks += [Heading("Definitions"), Table(("figure", "definition"), definitions)]
    return render_page("Evaluation", blocks)


def summary_rows(
    result: Result, metrics: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the summary: a row per label, and the mean of all.

    Args:
        result: As ``metrics.json`` holds it.
        metrics: Which; None for all that a summary shows.
    """
    wanted = metrics or [metric for metric, *_ in _COLUMNS]
    columns = [c for c in _COLUMNS if c[0] in result["mean"] and c[0] in wanted]
    reader = result.get("second_reader") if "dice" in wanted else None
    heads = ["label", *(head for _, head, _, _ in columns), "cases"]
    if reader is not None:
        heads.insert(2, "Dice of second reader")
    rows = []
    labels: list[tuple[str, Result, Result | None]] = [
        (row["name"], row, reader["labels"].get(value) if reader else None)
        for value, row in result["labels"].items()
    ]
    labels.append(("mean", result["mean"], reader["mean"] if reader else None))
    for name, row, ceiling in labels:
        cells = [_with_interval(row, *column) for column in columns]
        if reader is not None:
            cells.insert(1, _with_interval(ceiling or {}, *_COLUMNS[0]))
        rows.append([name, *cells, str(row.get("cases", len(result["cases"])))])
    return heads, rows


def _in_two_lines(
    heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[Sequence[str], list[list[str]]]:
    """Intervals below their figures: the page is narrow."""
    return heads, [[row[0], *(cell.replace(" (", "\n(") for cell in row[1:])] for row in rows]


def _in_short(result: Result) -> str:
    mean = result["mean"]
    return (
        f"{len(result['cases'])} cases, {len(result['labels'])} labels. "
        f"Mean Dice {_with_interval(mean, *_COLUMNS[0])}, "
        f"surface Dice at {result['definitions']['tolerance_mm']:g} mm "
        f"{_with_interval(mean, 'nsd', '', 3, 1.0)}."
    )


def _calibration(result: Result) -> list[Block]:
    found = result.get("calibration")
    if found is None:
        return []
    text = _with_interval(found, "ece", "", 4, 1.0)
    return [Text(f"Expected calibration error over {len(found['cases'])} cases: {text}.")]


def _problems(result: Result) -> list[Block]:
    blocks: list[Block] = []
    if result["missing"]:
        blocks.append(Text(f"References without a prediction: {_some(result['missing'])}."))
    if result["unpaired"]:
        blocks.append(Text(f"Predictions without a reference: {_some(result['unpaired'])}."))
    if result["failed"]:
        blocks += [
            Heading("Failed cases"),
            Table(("case", "why"), list(result["failed"].items())),
        ]
    return blocks


def _comparison(result: Result) -> list[Block]:
    found = result.get("comparison")
    if found is None:
        return []
    heads = ("label", "Dice change", "p", "effect", "higher", "lower", "NSD change", "HD95 change")
    rows = [
        _comparison_row(row["name"], row) for row in found["labels"].values()
    ] + [_comparison_row("mean", found["mean"])]  # fmt: skip
    changed = [
        (row["case"], *(_figure(row[key], 3) for key in ("dice", "dice_against", "change")))
        for row in found["changed"][:_MOST_ROWS]
    ]
    blocks: list[Block] = [
        Heading(f"Compared with {found['against']}"),
        Table(heads, rows, figures=True),
        Text(
            f"Change: {found['against']} - these predictions, on {found['cases']} cases; in "
            "brackets its 95 % bootstrap interval. p: Wilcoxon signed-rank test, not adjusted for "
            "the number of labels. Effect: matched-pairs rank-biserial correlation.", dim=True,
        ),
    ]  # fmt: skip
    if changed:
        blocks += [
            Text(f"{len(found['changed'])} cases changed; the largest changes of mean Dice:"),
            Table(("case", "Dice", found["against"], "change"), changed, figures=True),
        ]
    return blocks


def _comparison_row(name: str, row: Result) -> list[str]:
    dice = row["dice"]
    return [
        name, _change(dice, 4), _figure(dice["p_value"], 4), _figure(dice["rank_biserial"], 2),
        str(dice["higher"]), str(dice["lower"]), _change(row["nsd"], 4),
        _change(row["hd95_mm"], 2),
    ]  # fmt: skip


def _change(test: Result, digits: int) -> str:
    low, high = test["interval"]
    text = "-" if test["mean_difference"] is None else f"{test['mean_difference']:+.{digits}f}"
    return text if low is None else f"{text} ({low:+.{digits}f} to {high:+.{digits}f})"


def _groups(result: Result) -> list[Block]:
    if "groups" not in result:
        return []
    columns = [column for column in _COLUMNS if column[0] in ("dice", "nsd", "hd95_mm")]
    rows = [
        [name, *(_with_interval(group["mean"], *column) for column in columns), str(group["cases"])]
        for name, group in result["groups"].items()
    ]
    heads = ("group", *(head for _, head, _, _ in columns), "cases")
    return [Heading("Groups"), Table(heads, rows, figures=True)]


def _charts(result: Result) -> list[Block]:
    blocks: list[Block] = []
    reader = result.get("second_reader", {}).get("labels", {})
    for metric, title, unit in _CHARTS:
        strips = [
            Strip(
                row["name"],
                [
                    (case, scores[value][metric])
                    for case, scores in result["cases"].items()
                    if scores[value][metric] is not None
                ],
                reader.get(value, {}).get(metric),
            )
            for value, row in result["labels"].items()
        ]
        svg = strip_chart(strips, title=title, unit=unit)
        if svg:
            blocks.append(Chart(svg, f"{title}: each dot is a case, the box holds half of them"))
    points = [
        (f"{case}, {result['labels'][value]['name']}", row["prediction_ml"], row["reference_ml"])
        for case, scores in result["cases"].items()
        for value, row in scores.items()
        if row["prediction_ml"] and row["reference_ml"]
    ]
    svg = bland_altman(points, title="Agreement of volumes")
    if svg:
        blocks.append(Chart(svg, "Agreement of volumes (Bland-Altman), one dot per case and label"))
    return [Heading("Distributions"), *blocks] if blocks else []


def _with_interval(row: Result, metric: str, _: str, digits: int, factor: float) -> str:
    value = row.get(metric)
    if value is None:
        return "-"
    low, high = row.get(f"{metric}_interval") or (None, None)
    text = f"{value * factor:.{digits}f}"
    if low is None or high is None:
        return text
    return f"{text} ({low * factor:.{digits}f} to {high * factor:.{digits}f})"


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_ROWS} more" if len(names) > _MOST_ROWS else ""
    return ", ".join(names[:_MOST_ROWS]) + more
