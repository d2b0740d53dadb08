"""Tables of figures for papers and notes: Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column holds names, the others figures."""
    lines = [
        _markdown_row(heads),
        _markdown_row([":--", *["--:"] * (len(heads) - 1)], escape=False),
        *(_markdown_row(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def latex_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """A LaTeX table for the package booktabs; the first column holds names."""
    body = "\n".join(" & ".join(map(tex_escape, row)) + r" \\" for row in rows)
    head = " & ".join(map(tex_escape, heads)) + r" \\"
    return (
        "\\begin{table}\n\\centering\n"
        + (f"\\caption{{{tex_escape(caption)}}}\n" if caption else "")
        + f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}\n\\toprule\n{head}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


def tex_escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_TEX.get(character, character) for character in _one_line(text))


def _markdown_row(cells: Sequence[str], *, escape: bool = True) -> str:
    texts = [
        re.sub(r"([\\|*_`<>\[\]])", r"\\\1", _one_line(cell)) if escape else cell for cell in cells
    ]
    return f"| {' | '.join(texts)} |"


def _one_line(text: str) -> str:
    return " ".join(text.split())
