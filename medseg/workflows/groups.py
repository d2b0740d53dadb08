"""Groups of cases, for figures per group or fold."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from medseg.core.errors import FileError


def read_groups(path: str | Path) -> dict[str, str]:
    """Read which group each case belongs to.

    Args:
        path: A table (CSV, or TSV) with a row per case: the case id, and its group in the
            column "group", else in the second column; or a ``splits.json``, where the
            validation cases of a fold are a group.

    Raises:
        FileError: The file is missing, or is neither.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"groups {path}", expected="a table of cases and groups, or a splits.json",
            got=getattr(error, "strerror", None) or "a file that is not text",
        ) from error  # fmt: skip
    found = _of_folds(text, path) if path.suffix == ".json" else _of_table(text, path)
    if not found:
        raise FileError(f"groups {path}", expected="at least one case", got="none")
    return found


def _of_folds(text: str, path: Path) -> dict[str, str]:
    try:
        folds = json.loads(text)
        return {
            str(case): f"fold {number}"
            for number, fold in enumerate(folds)
            for case in fold.get("val", fold.get("validation", []))
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise FileError(
            f"groups {path}", expected='a list of folds, each with "val"', got=str(error)
        ) from error


def _of_table(text: str, path: Path) -> dict[str, str]:
    mark = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=mark) if any(row)]
    heads = [cell.strip().casefold() for cell in rows[0]] if rows else []
    place = heads.index("group") if "group" in heads else 1
    body = rows[1:] if "group" in heads or heads[:1] in (["case"], ["id"]) else rows
    short = next((row for row in body if len(row) <= place), None)
    if short is not None:
        raise FileError(
            f"groups {path}", expected="a case and its group in each row", got=",".join(short)
        )
    return {row[0].strip(): row[place].strip() for row in body}
