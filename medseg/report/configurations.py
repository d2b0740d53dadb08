"""The page of several configurations: how each did, and which was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.report.html import Block, Heading, Links, Table, Text, render_page

HEADS = ("configuration", "Dice", "95 % interval", "behind the best", "s per scan", "")


def configurations_page(table: Mapping[str, Any], pages: Sequence[str]) -> str:
    """Write the page.

    Args:
        table: What ``configurations.json`` holds.
        pages: Of the single runs, beside this one.

    Returns:
        HTML, self-contained.
    """
    blocks: list[Block] = [
        Text(table["reason"]),
        Heading(f"Dice of the same {table['cases']} cases, none of which was trained on"),
        Table(HEADS, configuration_rows(table), figures=True),
        *(Text(note, dim=True) for note in table["notes"]),
        Heading("Their own pages"),
        Links(pages),
    ]
    return render_page("Configurations", blocks)


def configuration_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """The rows below :data:`HEADS`, the best first."""
    rows = sorted(table["models"], key=lambda row: -(row["dice"] or 0.0))
    return [
        [
            row["name"], _figure(row["dice"]), _range(row["dice_interval"]),
            "" if row["behind"] is None
            else f"{_figure(row['behind'])} ({_range(row['behind_interval'])})",
            f"{row['case_s']:.2f}", "taken" if row["name"] == table["taken"] else "",
        ]
        for row in rows
    ]  # fmt: skip


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _range(ends: Sequence[float | None]) -> str:
    return " to ".join(map(_figure, ends))
