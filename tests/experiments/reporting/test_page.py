"""Text of others is text in a page, not HTML, a link or a picture; pictures of a page are small."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.reporting.page import TEMPLATES, few_colours, image_bytes, write_page
from experiments.reporting.table import Table

HOSTILE = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "![seen](http://example.com/x.png)", "[a](x)")


def page(path: Path, name: str) -> str:
    table = Table("Figures", ("arm", "gain"), ((name, "+.1"),))
    values = {"question": name, "tables": [table, table], "remarks": [f"{name}\n# more"], "figures": [], "image": ""}
    write_page(path, "compare", **values)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["compare.md", "compare.html"])
def test_a_page_that_is_printed_does_not_steer_the_terminal(name: str, tmp_path: Path) -> None:
    text = page(tmp_path / name, "a\x1b]0;title\x07\x9b2J\u202eb")
    assert text.count("a\\x1b]0;title\\x07\\x9b2J\\u202eb") >= 3
    assert not set(text) & set("\x1b\x07\x9b\u202e")


class Elements(HTMLParser):
    """The elements of a page, with the names of their attributes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


@pytest.mark.parametrize("name", [*HOSTILE, '"><b onclick=alert(1)>', "</title></style><script>"])
def test_a_page_has_the_elements_of_one_with_plain_text(name: str, tmp_path: Path) -> None:
    for file, text in (("a.html", "plain"), ("b.html", name)):
        page(tmp_path / file, text)
    assert Elements(tmp_path / "b.html").found == Elements(tmp_path / "a.html").found


def test_every_page_escapes_all_text() -> None:
    texts = {file.name: file.read_text(encoding="utf-8") for file in TEMPLATES.glob("*.html.j2")}
    assert len(texts) >= 5
    assert [name for name, text in texts.items() if re.search(r"\|\s*safe|autoescape|Markup", text)] == []


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_has_no_tag_and_no_link_of_others(name: str, tmp_path: Path) -> None:
    text = page(tmp_path / "compare.md", name)
    assert "<" not in text
    assert text.count("](") == 1  # the report's own picture
    assert "\n# more" not in text
    assert "| +.1 |" in text


def test_a_picture_of_few_colours_is_smaller_and_looks_the_same() -> None:
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot(np.random.default_rng(0).normal(size=(200, 3)))
    png = image_bytes(figure, "png")
    small = few_colours(png)
    assert len(small) < 0.6 * len(png)
    before, after = (np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).astype(float) for one in (png, small))
    assert before.shape == after.shape
    assert np.abs(before - after).mean() < 2  # of 255
    assert len(np.unique(after.reshape(-1, 3), axis=0)) <= 64
