"""The page holds everything, fetches nothing, and does not obey names."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.report import page
from beit.report.page import Figure, RunReport, Section
from beit.report.tables import Table
from beit.report.text import printable

EVIL = [
    "<img src=x onerror=alert(1)>.jpg",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "</style><script src=https://example.org/x.js></script>",
    "</pre></details><iframe src=//example.org>",
    "javascript:alert(1)",
    "&lt;b&gt; &amp;",
    "new\nline \u202egpj 🐈 " + "x" * 255,
    b"\xff\xfe.jpg".decode("utf-8", "surrogateescape"),
]


def _png(width: int = 8, height: int = 6) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _report(name: str) -> RunReport:
    return RunReport(
        title=name,
        subtitle=name,
        summary=[(name, name)],
        sections=[
            Section(name, [name], [Figure(_png(), name, name)], [Table([name], [[name]], name)]),
            Section("second", figures=[Figure(_png(), name)]),
        ],
        recipe=name,
        command=name,
        footnotes=[name],
    )


class Elements(HTMLParser):
    """Collects what a browser would build."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", EVIL)
def test_names_are_shown_and_add_no_element(name: str) -> None:
    plain, strange = Elements(page.render(_report("plain"))), Elements(page.render(_report(name)))
    assert [tag for tag, _ in strange.tags] == [tag for tag, _ in plain.tags]
    for (_, ours), (_, theirs) in zip(plain.tags, strange.tags, strict=True):
        assert list(ours) == list(theirs), "no attribute is added"
    shown = printable(name)
    assert sum(text.strip() == shown for text in strange.text) >= 8


@pytest.mark.parametrize("name", EVIL)
def test_the_page_can_always_be_written(tmp_path: Path, name: str) -> None:
    page.write(_report(name), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_nothing_is_fetched_and_nothing_runs() -> None:
    html = page.render(_report(EVIL[3]))
    elements = Elements(html)
    allowed = {"html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "dl"}
    allowed |= {"div", "dt", "dd", "nav", "ul", "li", "a", "section", "figure", "img", "footer"}
    allowed |= {"figcaption", "table", "caption", "thead", "tbody", "tr", "th", "td", "pre"}
    allowed |= {"details", "summary"}
    assert {tag for tag, _ in elements.tags} <= allowed
    for tag, attributes in elements.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert "srcset" not in attributes and "data" not in attributes
        if "src" in attributes:
            assert tag == "img" and attributes["src"].startswith("data:image/png;base64,")
        if "href" in attributes:
            assert re.fullmatch(r"#section-\d+", attributes["href"])


def test_the_style_fetches_nothing_and_the_policy_names_it() -> None:
    html = page.render(RunReport("run"))
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|://", style[1])
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = next(
        attributes["content"]
        for tag, attributes in Elements(html).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["style-src"] == f"'sha256-{digest}'"
    assert "script-src" not in rules and "unsafe" not in policy
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_pictures_come_back_as_they_were_with_their_size() -> None:
    png = _png(width=31, height=20)
    report = RunReport("run", sections=[Section("one", figures=[Figure(png, "caption")])])
    image = next(
        attributes for tag, attributes in Elements(page.render(report)).tags if tag == "img"
    )
    assert base64.b64decode(image["src"].split(",")[1]) == png
    assert (image["width"], image["height"]) == ("16", "10")
    assert image["alt"] == "caption", "without an alternative the caption stands in"
    assert page.png_size(png) == (31, 20)


def test_what_is_not_a_png_is_refused() -> None:
    with pytest.raises(AssertionError):
        page.png_size(b"<svg onload=alert(1)>" + b" " * 30)


def test_links_lead_to_sections_and_numbers_stand_right() -> None:
    table = Table(["name", "n"], [["a", "1.5 ± 0.1"]])
    sections = [Section("one", tables=[table]), Section("two")]
    tags = Elements(page.render(RunReport("run", sections=sections))).tags
    targets = {attributes["href"][1:] for tag, attributes in tags if tag == "a"}
    assert targets == {attributes["id"] for tag, attributes in tags if tag == "section"}
    assert [attributes.get("class") for tag, attributes in tags if tag == "td"] == [None, "number"]


def test_empty_parts_are_left_out() -> None:
    tags = {tag for tag, _ in Elements(page.render(RunReport("run"))).tags}
    assert not tags & {"dl", "nav", "section", "details", "footer", "pre"}


def test_a_recipe_keeps_its_lines() -> None:
    text = Elements(page.render(RunReport("run", recipe="a: 1\nb:\n  c: 2\n"))).text
    assert "a: 1\nb:\n  c: 2" in text


def test_an_interrupted_write_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    page.write(RunReport("old"), path)

    def fail(source: Path, target: Path) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            page.write(RunReport("new"), path)
    assert "<title>old</title>" in path.read_text()
    assert [left.name for left in tmp_path.iterdir()] == ["report.html"]
