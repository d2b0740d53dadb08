"""The page of a training run: what the run left on the disk in, blocks for the page out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medseg.core.plan import Plan
from medseg.report.charts import Curve, curve_chart
from medseg.report.evaluation import ShownCase
from medseg.report.html import Block, Chart, Heading, Overlay, Table, Text, render_page

# Colours that also those see apart who do not see red and green (Tol, "bright").
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
# Name in the log, title, unit.
_CURVES = (
    ("loss", "Loss", ""),
    ("gradient_norm", "Norm of the gradient", ""),
    ("learning_rate", "Learning rate", ""),
    ("samples_per_s", "Samples per second", "1/s"),
    ("data_wait_share", "Share of the time that the device waited for data", ""),
)


@dataclass(frozen=True)
class FoldStory:
    """What a fold left behind.

    Attributes:
        name: Of the fold.
        history: The facts of each epoch, as in ``log.jsonl``.
        metrics: ``metrics.json`` of its validation cases; None without any.
        facts: ``outcome.json``: steps, seconds, memory.
        shown: Cases that stand out.
    """

    name: str
    history: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    shown: Sequence[ShownCase] = field(default=(), repr=False)


def training_page(plan: Plan, folds: Sequence[FoldStory], *, notes: Sequence[str] = ()) -> str:
    """Write the page of a run.

    Args:
        plan: What was decided.
        folds: At least one.
        notes: Sentences to begin with, such as the advice on waiting for data.

    Returns:
        HTML, self-contained, safe whatever names the files had.
    """
    blocks: list[Block] = [Text(_in_short(plan, folds)), *(Text(note) for note in notes)]
    blocks += _dice(folds) + _curves(plan, folds)
    shown = [(fold, case) for fold in folds for case in fold.shown]
    if shown:
        blocks.append(Heading("Worst and best validation cases"))
        for fold, case in shown:
            caption = case.caption if len(folds) == 1 else f"Fold {fold.name}. {case.caption}"
            blocks.append(Overlay(case.base, case.layers, caption))
    blocks += _costs(folds) + _decisions(plan)
    return render_page("Training", blocks)


def _in_short(plan: Plan, folds: Sequence[FoldStory]) -> str:
    steps = sum(int(fold.facts.get("steps", 0)) for fold in folds)
    seconds = sum(_seconds(fold, "train") for fold in folds)
    dice = [fold.metrics["mean"]["dice"] for fold in folds if fold.metrics is not None]
    known = [value for value in dice if value is not None]
    judged = f" Mean Dice of validation {sum(known) / len(known):.4f}." if known else ""
    many = f" in {len(folds)} folds" if len(folds) > 1 else ""
    return (
        f"{plan.network.name}, {len(plan.labels)} labels; {steps} steps{many} "
        f"in {_time(seconds)}.{judged}"
    )


def _dice(folds: Sequence[FoldStory]) -> list[Block]:
    judged = [fold for fold in folds if fold.metrics is not None]
    if not judged:
        return [Text("No case was kept for validation: nothing was judged.", dim=True)]
    names = {
        value: row["name"]
        for fold in judged
        for value, row in (fold.metrics or {})["labels"].items()
    }
    rows = []
    for fold in judged:
        metrics = fold.metrics or {}
        found = [metrics["labels"].get(value, {}).get("dice") for value in names]
        cells = [_figure(value) for value in (*found, metrics["mean"]["dice"])]
        rows.append([fold.name, *cells, str(len(metrics["cases"]))])
    if len(judged) > 1:
        rows.append(["all folds", *_means(judged, list(names)), ""])
    heads = ["fold", *names.values(), "mean", "cases"]
    return [Heading("Dice of the validation cases"), Table(heads, rows, figures=True)]


def _means(folds: Sequence[FoldStory], values: Sequence[str]) -> list[str]:
    """Mean over folds of each label, and of the means."""
    columns = [
        [(fold.metrics or {})["labels"].get(value, {}).get("dice") for fold in folds]
        for value in values
    ]
    columns.append([(fold.metrics or {})["mean"]["dice"] for fold in folds])
    known = [[value for value in column if value is not None] for column in columns]
    return [_figure(sum(column) / len(column) if column else None) for column in known]


def _curves(plan: Plan, folds: Sequence[FoldStory]) -> list[Block]:
    blocks: list[Block] = []
    for key, title, unit in _CURVES:
        curves = [
            Curve(
                f"fold {fold.name}",
                [(row["step"], row[key]) for row in fold.history if row.get(key) is not None],
                _COLOURS[number % len(_COLOURS)],
            )
            for number, fold in enumerate(folds)
        ]
        blocks += _chart(curves, title, unit)
    colours = {
        label.name: "#{:02x}{:02x}{:02x}".format(*label.colour) for label in plan.labels.labels
    }
    for fold in folds:
        looks = [row for row in fold.history if row.get("dice")]
        curves = [
            Curve(
                name,
                [(r["step"], r["dice"][name]) for r in looks if r["dice"].get(name) is not None],
                colour,
            )
            for name, colour in colours.items()
        ]
        blocks += _chart(curves, f"Dice of the cases kept back, fold {fold.name}", "")
    return [Heading("While it learned"), *blocks] if blocks else []


def _chart(curves: Sequence[Curve], title: str, unit: str) -> list[Block]:
    svg = curve_chart(curves, title=title, across="step", unit=unit)
    return [Chart(svg, title)] if svg else []


def _costs(folds: Sequence[FoldStory]) -> list[Block]:
    rows = []
    for fold in folds:
        memory = fold.facts.get("memory", {})
        rows.append([
            fold.name, str(fold.facts.get("steps", "-")),
            *(_time(_seconds(fold, phase)) for phase in ("prepare", "train", "validate")),
            _gigabytes(memory.get("process_mb")), _gigabytes(memory.get("device_mb")),
        ])  # fmt: skip
    heads = ("fold", "steps", "prepare", "train", "validate", "most memory", "of the GPU")
    return [Heading("Time and memory"), Table(heads, rows, figures=True)]


def _decisions(plan: Plan) -> list[Block]:
    """The plan, key by key, with the reason where one is given."""
    reasons = dict(plan.reasons)
    rows = [[key, _text(value), reasons.pop(key, "")] for key, value in plan_values(plan).items()]
    rows += [[key, "", reason] for key, reason in reasons.items()]
    rows.sort(key=lambda row: not row[2])  # what was thought about comes first
    return [Heading("The plan"), Table(("what", "value", "why"), rows)]


def plan_values(plan: Plan) -> dict[str, Any]:
    """The decisions of a plan by their dotted names, without the reasons."""
    data = plan.model_dump(mode="json", exclude={"reasons"})
    data["labels"] = ", ".join(plan.labels.names)
    return dict(_flat(data))


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _text(value: Any) -> str:
    if value in ([], {}, None):
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    many = isinstance(value, list)
    text = f"[{', '.join(map(_text, value))}]" if many else str(value).replace("'", "")
    return text if len(text) <= 300 else text[:300] + "…"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _seconds(fold: FoldStory, phase: str) -> float:
    return float(fold.facts.get("seconds", {}).get(phase, 0.0))


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _gigabytes(megabytes: float | None) -> str:
    return "-" if megabytes is None else f"{megabytes / 1000:.2f} GB"
