"""Tables of the desk: plain HTML that is whole without a script, with filters and sorting where scripts run."""

from __future__ import annotations

from html.parser import HTMLParser

import pandas as pd

from experiments.desk.grid import Grid
from experiments.reporting.table import Table

TABLE = Table("", ("arm", "gain"), (("full <b>", "+.41 [.35,.47]"), ("control", "-.02 [-.04,.01]")), "95 %", numbers=1)


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_all_rows_are_there_without_a_script_and_names_are_escaped() -> None:
    page = Seen(Grid(TABLE, "two arms", choosers=("arm",))._repr_html_())
    assert page.tags.count("tr") == 3
    assert "b" not in page.tags
    assert {"two arms", "full <b>", "+.41", "[.35,.47]", "95 %", "every arm"} <= set(page.texts)
    assert page.tags.count("option") == 3


def test_two_grids_on_a_page_have_places_of_their_own_and_need_no_network() -> None:
    first, second = (Grid(TABLE)._repr_html_() for _ in range(2))
    assert first != second
    assert "PLACE" not in first
    assert "http" not in first
    assert len(first) < 4000  # a notebook with ten of them stays small
    assert "pre-wrap" in Grid(TABLE, prose=True)._repr_html_()


def test_a_pandas_table_has_its_index_first_and_rounded_numbers() -> None:
    frame = pd.DataFrame({"cosine": [0.98765, 1.0]}, index=pd.Index([7, 15], name="layer"))
    page = Seen(Grid.of(frame, places=2, above="<control>")._repr_html_())
    assert "".join(page.texts).split("layer")[0].strip().endswith("<control>")
    assert [text for text in page.texts if text in ("layer", "cosine", "7", "0.99", "15", "1.0")] == [
        "layer", "cosine", "7", "0.99", "15", "1.0",
    ]  # fmt: skip


def test_a_learning_rate_of_a_pandas_table_is_not_rounded_to_nothing() -> None:
    rates = pd.array([3e-4, 2.5e-5, 0.01, None], dtype="Float64")
    frame = pd.DataFrame({"rate": rates, "kl": [0.00043, 0.0, 1.23456, float("nan")], "step": [1, 2, 3, 4]})
    assert Grid.of(frame).table.rows == (
        ("0", "0.0003", "0.00043", "1"), ("1", "2.5e-05", "0.0", "2"), ("2", "0.01", "1.235", "3"),
        ("3", "<NA>", "nan", "4"),
    )  # fmt: skip
