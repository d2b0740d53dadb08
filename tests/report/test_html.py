from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from urllib.parse import quote

from medseg.report.html import (
    Heading,
    Links,
    Overlay,
    Picture,
    Table,
    Text,
    render_page,
)

EVIL = '<script>alert(1)</script>" onload="x'


class Tags(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(page: str) -> Tags:
    found = Tags()
    found.feed(page)
    found.close()
    return found


def test_every_text_is_escaped() -> None:
    blocks = [Text(EVIL), Heading(EVIL), Table((EVIL,), [(EVIL,)]), Picture(b"png", EVIL)]
    found = parsed(render_page(EVIL, blocks))
    assert "script" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert sum(EVIL in text for text in found.texts) == 7


def test_a_page_is_whole_and_fetches_nothing() -> None:
    table = Table(("severity", "case"), [("error", "a"), ("other", "b")])
    page = render_page("Check", [table, Picture(b"\x89PNG", "a case")])
    found = parsed(page)
    assert page.startswith("<!doctype html>")
    sources = [value for name, value in found.attributes if name in ("src", "href")]
    assert sources == ["data:image/png;base64,iVBORw=="]
    assert ("class", "error") in found.attributes
    assert ("class", "other") not in found.attributes


def test_the_only_script_is_the_one_that_fades() -> None:
    page = render_page(EVIL, [Overlay(b"png", [(EVIL, b"png")], EVIL), Links([EVIL])])
    found = parsed(page)
    assert found.tags.count("script") == 1
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for name, value in found.attributes if name == "content" and "src" in value)
    assert policy.endswith(f"; script-src 'sha256-{digest}'")
    links = [value for name, value in found.attributes if name == "href"]
    assert links == [quote(EVIL)]
    assert "script-src" not in render_page("plain", [Picture(b"png", "a")])
