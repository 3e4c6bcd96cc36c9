"""Text of others is text in a page, not HTML, a link or a picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.reporting.page import write_page
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


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_has_no_tag_and_no_link_of_others(name: str, tmp_path: Path) -> None:
    text = page(tmp_path / "compare.md", name)
    assert "<" not in text
    assert text.count("](") == 1  # the report's own picture
    assert "\n# more" not in text
    assert "| +.1 |" in text
