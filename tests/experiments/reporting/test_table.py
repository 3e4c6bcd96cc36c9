"""One table in all its forms."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser

from markupsafe import Markup

from experiments.reporting.table import Table

FAILED = ("c", "failed: <why>\nand more")
TABLE = Table("t", ("arm", "a|b", "n"), (("a", ".5 [.4,.6]", "1"), ("b", "-", "22"), FAILED), numbers=1,
              hints={"a|b": 'the "value"'}, marks={(0, 1): 'class="best"'})  # fmt: skip


def test_markdown_escapes_bars_and_fills_a_failed_row() -> None:
    assert TABLE.markdown().splitlines() == [
        "| arm | a\\|b | n |",
        "| --- | --- | --- |",
        "| a | .5 [.4,.6] | 1 |",
        "| b | - | 22 |",
        "| c | failed: <why> and more |  |",
    ]


def test_text_is_aligned_and_a_failed_row_takes_no_width_but_is_cut() -> None:
    assert TABLE.text().splitlines() == [
        "arm  a|b          n",
        "-------------------",
        "a    .5 [.4,.6]   1",
        "b    -           22",
        "c    failed: <why> ...",
    ]
    assert TABLE.text(18).splitlines() == [
        "arm a|b         n",
        "-----------------",
        "a   .5 [.4,.6]  1",
        "b   -          22",
        "c   failed: <wh...",
    ]
    long = Table("", ("arm", "x"), (("a name",),))
    assert long.text() == "arm  x\n------\na name"


class Cells(HTMLParser):
    """Text and attributes of all cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes = " ".join(f"{name}={value}" for name, value in attrs)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append((data, self.attributes))


def test_html_escapes_marks_and_spans() -> None:
    text = TABLE.html("heat")
    assert text.startswith('<table class="heat">')
    assert Cells(text).found == [
        ("arm", ""), ("a|b", 'title=the "value"'), ("n", "class=num"),
        ("a", "data-title=arm"), (".5", "class=best data-title=a|b"), ("[.4,.6]", ""), ("1", "class=num data-title=n"),
        ("b", "data-title=arm"), ("-", "data-title=a|b"), ("22", "class=num data-title=n"),
        ("c", "data-title=arm"), ("failed: <why>\nand more", "class=reason colspan=2"),
    ]  # fmt: skip


def test_csv_keeps_values_and_leaves_gaps_empty() -> None:
    table = Table.of([{"arm": "a", "x": 0.1 + 0.2}, {"arm": "b, c", "y": None, "z": "text"}])
    assert table.head == ("arm", "x", "y", "z")
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert float(rows[0]["x"]) == 0.1 + 0.2
    assert rows[1] == {"arm": "b, c", "x": "", "y": "", "z": "text"}
    assert Table.of([{"a": 1, "b": 2}], ("b",)).csv() == "b\n2\n"
    assert Table.of([]).csv() == "\n"


def test_a_link_in_a_cell_stays_one_and_the_text_of_others_is_escaped() -> None:
    link = Markup('<a href="x?a=1&amp;b=2">{}</a>').format("<b>")
    page = Table.of([{"a": "<i>", "b": link}]).html()
    assert ">&lt;i&gt;</td>" in page
    assert '><a href="x?a=1&amp;b=2">&lt;b&gt;</a></td>' in page
