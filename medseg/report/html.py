"""One self-contained HTML page: tables, charts and pictures in, a text out. No outside file.

The only script is the one below, which fades layers of pictures; the page's own policy
allows no other, whatever a name in it may hold.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

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
.figures td { white-space: pre; } .figures { font-size: .87em; }
.figures td + td, .figures th + th { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: currentColor; }
svg .grid { stroke: var(--line); } svg .mark { stroke: #b9770e; } svg .median { stroke: currentColor; stroke-width: 2; }
svg .box { fill: #4477aa44; stroke: #4477aa; } svg .dot { fill: #4477aa; fill-opacity: .75; } svg .ceiling { fill: #ee7733; }
.stack { position: relative; display: inline-block; background: #000; } .stack img { display: block; border: 0; }
.stack img + img { position: absolute; inset: 0; width: 100%; height: 100%; }
.fade label { margin-right: 1.5rem; } .fade input { vertical-align: middle; width: 9rem; }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt; color: #000; background: #fff; }
  h2 { break-after: avoid; } figure, tr, svg { break-inside: avoid; } thead { display: table-header-group; }
  .fade { display: none; } .wide { overflow: visible; } table { font-size: 8pt; } th, td { padding: .15rem .3rem; }
  img, svg, .stack { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
@page { margin: 15mm; }
"""  # noqa: E501
_SCRIPT = (
    "document.querySelectorAll('.fade input').forEach(function (knob) {"
    "knob.addEventListener('input', function () {"
    "knob.closest('figure').querySelectorAll('.stack img')[1 + Number(knob.dataset.layer)]"
    ".style.opacity = knob.value / 100;});});"
)


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
    """Heads and rows; a cell that is the name of a severity is coloured.

    Attributes:
        figures: Whether all but the first column hold figures, to be set to the right.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG picture with what it shows."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Chart:
    """SVG as :mod:`medseg.report.charts` makes it: markup of our own, its texts escaped."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Overlay:
    """Pictures of one size over each other, each with a slider that fades it."""

    base: bytes
    layers: Sequence[tuple[str, bytes]]
    caption: str


@dataclass(frozen=True)
class Links:
    """Files beside the page: what they are called."""

    names: Sequence[str]


Block = Text | Heading | Table | Picture | Chart | Overlay | Links


def render_page(title: str, blocks: Sequence[Block]) -> str:
    """Write a page. Every text is escaped: names come from files, and may hold anything."""
    body = "\n".join(_render(block) for block in blocks)
    fades = any(isinstance(block, Overlay) for block in blocks)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"; script-src 'sha256-{digest}'" if fades else ""
    script = f"<script>{_SCRIPT}</script>\n" if fades else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"img-src data:; style-src 'unsafe-inline'{policy}\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n{script}</body>\n</html>\n"
    )


def _render(block: Block) -> str:
    match block:
        case Text(text, dim):
            kind = ' class="dim"' if dim else ""
            return f"<p{kind}>{escape(text)}</p>"
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Table(heads, rows, figures):
            kind = ' class="figures"' if figures else ""
            head = "".join(f"<th>{escape(text)}</th>" for text in heads)
            lines = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
            return (
                f'<div class="wide"><table{kind}>\n<thead><tr>{head}</tr></thead>\n'
                f"<tbody>\n{lines}\n</tbody></table></div>"
            )
        case Picture(png, caption):
            return (
                f"<figure><figcaption>{escape(caption)}</figcaption>{_image(png, caption)}</figure>"
            )
        case Chart(svg, caption):
            return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"
        case Overlay():
            return _overlay(block)
        case Links(names):
            items = [f'<a href="{escape(quote(name))}">{escape(name)}</a>' for name in names]
            return f"<p>Files: {', '.join(items)}</p>"


def _overlay(block: Overlay) -> str:
    knobs = "".join(
        f'<label>{escape(name)} <input type="range" min="0" max="100" value="100" '
        f'data-layer="{number}"></label>'
        for number, (name, _) in enumerate(block.layers)
    )
    images = "".join(_image(png, name) for name, png in [("scan", block.base), *block.layers])
    return (
        f"<figure><figcaption>{escape(block.caption)}</figcaption>"
        f'<div class="stack">{images}</div><div class="fade">{knobs}</div></figure>'
    )


def _image(png: bytes, name: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'


def _cell(text: str) -> str:
    kind = f' class="{text}"' if text in ("error", "warning", "note") else ""
    return f"<td{kind}>{escape(text)}</td>"
