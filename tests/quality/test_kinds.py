"""Each kind of finding is explained in docs/datasets.md, and nothing else is."""

from __future__ import annotations

import ast
import re
from pathlib import Path


def kinds_in_the_code(repository: Path) -> set[str]:
    found = set()
    for path in (repository / "medseg" / "quality").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    kinds = {text for text in found if re.fullmatch(r"[a-z]+(-[a-z]+)+", text)}
    # "grid-constant" is a word of SciPy's.
    return (kinds - {"grid-constant"}) | {"unreadable", "channels"}


def test_the_page_names_every_kind(repository: Path) -> None:
    page = (repository / "docs" / "datasets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", page, flags=re.MULTILINE)
    named = {kind for row in rows for kind in re.findall(r"`([a-z-]+)`", row)}
    assert named == kinds_in_the_code(repository)
