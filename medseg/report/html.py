"""One self-contained HTML page: tables and pictures in, a text out. No script, no outside file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.dim, td.dim { color: var(--dim); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
td { overflow-wrap: anywhere; }
.error { color: #c0392b; font-weight: 600; } .warning { color: #b9770e; font-weight: 600; }
.note { color: var(--dim); }
td.error, td.warning, td.note { white-space: nowrap; }
figure { margin: 1rem 0 2rem; } figcaption { margin-bottom: .4rem; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); }
"""  # noqa: E501


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    dim: bool = False


@dataclass(frozen=True)
class Heading:
    """The head of a section."""

    text: str


@dataclass(frozen=True)
class Table:
    """Heads and rows; a cell that is the name of a severity is coloured."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG picture with what it shows."""

    png: bytes
    caption: str


Block = Text | Heading | Table | Picture


def render_page(title: str, blocks: Sequence[Block]) -> str:
    """Write a page. Every text is escaped: names come from files, and may hold anything."""
    body = "\n".join(_render(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _render(block: Block) -> str:
    match block:
        case Text(text, dim):
            kind = ' class="dim"' if dim else ""
            return f"<p{kind}>{escape(text)}</p>"
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Table(heads, rows):
            head = "".join(f"<th>{escape(text)}</th>" for text in heads)
            lines = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
            return (
                f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
                f"<tbody>\n{lines}\n</tbody></table></div>"
            )
        case Picture(png, caption):
            data = base64.b64encode(png).decode("ascii")
            return (
                f"<figure><figcaption>{escape(caption)}</figcaption>"
                f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}"></figure>'
            )


def _cell(text: str) -> str:
    kind = f' class="{text}"' if text in ("error", "warning", "note") else ""
    return f"<td{kind}>{escape(text)}</td>"
