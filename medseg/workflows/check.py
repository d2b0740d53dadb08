"""Check a dataset: what is wrong with it, as a table, as JSON and as a page with pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medseg.core.errors import InputError
from medseg.datasets.open import open_dataset
from medseg.io.atomic import write_text
from medseg.io.guarded import GuardedReader
from medseg.quality.check import CheckReport, check_dataset
from medseg.quality.finding import Finding
from medseg.quality.mend import mend_dataset
from medseg.quality.pictures import picture_of
from medseg.report.html import Block, Heading, Picture, Table, Text, render_page

_MOST_PICTURES = 60
_LOG = logging.getLogger(__name__)


def check(
    dataset: str | Path,
    out: str | Path | None = None,
    *,
    fix: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """Look for what is wrong with a dataset of any layout.

    Args:
        dataset: A folder or a table.
        out: Folder for ``check.json`` and ``check.html``; None writes nothing.
        fix: Write a mended copy into ``out`` too, in MSD layout, with ``mended.json``; cases
            that cannot be mended safely are left out and listed there.
        workers: Threads that read; None takes one per core.
        progress: Called with (done, total, case id).

    Returns:
        ``{"dataset": name, "layout": ..., "cases": n, "counts": {severity: n},
        "findings": [{"kind", "severity", "case", "expected", "got", "cure", ...}]}``, and
        ``"mended"`` with ``fix``.

    Raises:
        DatasetError: It is no dataset, or its description is malformed.
        InputError: ``fix`` without ``out``, or ``out`` is not empty.
        OutputError: ``out`` cannot be written.
    """
    target = None if out is None else Path(out)
    if fix and (target is None or (target.exists() and any(target.iterdir()))):
        raise InputError(
            "--fix", expected="--out with a new or empty folder",
            got="no --out" if target is None else f"{target}, which holds something",
            cure="The mended copy goes there; the dataset itself is never changed.",
        )  # fmt: skip
    opened = open_dataset(dataset, lenient=True)
    report = check_dataset(opened, workers=workers, progress=progress)
    result = _result(report)
    if target is None:
        return result
    if fix:
        mended = mend_dataset(report, target, progress=progress)
        result["mended"] = mended.to_dict()
        for case, reason in mended.left_out:
            _LOG.warning("%s is left out: %s", case, reason)
    write_text(target / "check.json", json.dumps(result, indent=1))
    write_text(target / "check.html", _page(report, result))
    return result


def _result(report: CheckReport) -> dict[str, Any]:
    return {
        "dataset": report.dataset.name,
        "layout": report.dataset.layout,
        "cases": len(report.dataset.cases),
        "counts": report.counts,
        "findings": [finding.to_dict() for finding in report.findings],
    }


def _page(report: CheckReport, result: dict[str, Any]) -> str:
    counts = ", ".join(f"{number} {name}s" for name, number in report.counts.items())
    blocks: list[Block] = [
        Text(f"{result['cases']} cases, {report.dataset.layout} layout. Found: {counts}."),
        Text("For research use only.", dim=True),
    ]
    if report.findings:
        heads = ("severity", "kind", "case", "expected", "found", "what to do")
        blocks += [Heading("Findings"), Table(heads, [_row(f) for f in report.findings])]
    if "mended" in result:
        blocks += _mended(result["mended"])
    shown = [finding for finding in report.findings if finding.case][:_MOST_PICTURES]
    # Drawing one picture needs its scan in memory: two at a time are enough.
    with ThreadPoolExecutor(2) as pool, GuardedReader() as reader:
        drawn = list(pool.map(lambda finding: picture_of(finding, report.dataset, reader), shown))
    pictures = [
        Picture(png, f"{finding.case}, {finding.kind}: {finding.got}")
        for finding, png in zip(shown, drawn, strict=True)
        if png is not None
    ]
    if pictures:
        blocks += [Heading("Pictures"), *pictures]
    left = sum(1 for finding in report.findings if finding.case) - len(shown)
    if left:
        blocks.append(Text(f"{left} further findings are not drawn.", dim=True))
    return render_page(f"Check of {report.dataset.name}", blocks)


def _row(finding: Finding) -> tuple[str, ...]:
    others = f" (and {', '.join(finding.others)})" if finding.others else ""
    case = f"{finding.case or 'dataset'}{others}"
    return finding.severity, finding.kind, case, finding.expected, finding.got, finding.cure


def _mended(mended: dict[str, Any]) -> list[Block]:
    changes = [(row["case"], row["change"]) for row in mended["changes"]]
    gone = [(row["case"], row["reason"]) for row in mended["left_out"]]
    blocks: list[Block] = []
    if changes:
        blocks += [Heading("Mended"), Table(("case", "change"), changes)]
    if gone:
        blocks += [Heading("Left out"), Table(("case", "reason"), gone)]
    return blocks
