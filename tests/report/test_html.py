from __future__ import annotations

from html.parser import HTMLParser

from medseg.report.html import Heading, Picture, Table, Text, render_page

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
