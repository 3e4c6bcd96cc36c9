"""Text of others cannot steer a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.common.printable import csv_cell, from_csv_cell, printable, without_codes
from experiments.reporting.table import Table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain: ä 数学 🙂\n\tnext", "plain: ä 数学 🙂\n\tnext"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("a\u202eb\x00", "a\\u202eb\\x00"),
        ("\x9b2J", "\\x9b2J"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert without_codes(text) == shown


def test_files_keep_the_joiners_of_other_scripts() -> None:
    assert (
        without_codes("\u0645\u06cc\u200c\u0634\u0648\u062f \U0001f469\u200d\U0001f4bb\u00a0x")
        == "\u0645\u06cc\u200c\u0634\u0648\u062f \U0001f469\u200d\U0001f4bb\u00a0x"
    )


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+1", "-2+3", "\t=1", "\r=1"])
def test_a_cell_that_spreadsheets_would_run_is_a_text(text: str) -> None:
    """Names of arms and tasks, and reasons of failures, may be those of others."""
    assert csv_cell(text) == f"'{text}"
    assert from_csv_cell(csv_cell(text)) == text
    assert Table("", (text,), ((text, -1.5),)).csv().count(f"'{text}") == 2


@pytest.mark.parametrize("value", ["full", "'quoted'", "", "a=1", -1.5, None])
def test_other_cells_stay(value: Any) -> None:
    assert csv_cell(value) == value
    assert not isinstance(value, str) or from_csv_cell(value) == value
