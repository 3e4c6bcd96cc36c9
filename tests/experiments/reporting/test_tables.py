"""The tables over invented arms."""

from __future__ import annotations

import csv
import io

from experiments.reporting.tables import format_table, markdown_rows, table_csv
from tests.helpers.arms import BASE, six, untrained


def test_the_terminal_table_fits_and_shows_intervals() -> None:
    lines = format_table([*six(), untrained()]).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert lines[0].split() == ["arm", "lr", "gain", "retention", "neg.", "flips", "KL", "ppl", "drift", "tok/s", "GB"]
    values = ["+.49 [.41,.57]", "1.00 [.97,1.03]", ".03 [.01,.05]", ".10 [.09,.11]", "+.03 [.00,.06]", "612", "2.3"]
    assert lines[7].split() == ["control", "3e-4", *" ".join(values).split()]
    assert lines[8] == "broken  1e-3 failed: OutOfMemoryError: <no memory> ..."


def test_the_csv_holds_every_figure_of_every_arm() -> None:
    results = [*six(), untrained()]
    rows = list(csv.DictReader(io.StringIO(table_csv(BASE, results))))
    assert [row["arm"] for row in rows] == ["base", *(r.arm for r in results)]
    assert float(rows[0]["kept_accuracy_high"]) == 0.88
    for row, result in zip(rows[1:7], results, strict=False):
        for name, estimate in result.scorecard.items():
            assert (float(row[name]), float(row[f"{name}_low"])) == (estimate.value, estimate.low)
        assert float(row["cost_tokens_per_s"]) == 612.4
    assert rows[-1]["reason"].startswith("OutOfMemoryError")
    assert rows[-1]["gain"] == ""


def test_a_bar_in_a_cell_does_not_split_it() -> None:
    assert markdown_rows([["a|b", "c"], ["1", "2"]]) == "| a\\|b | c |\n| --- | --- |\n| 1 | 2 |"
