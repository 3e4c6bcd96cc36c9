"""Text of others cannot steer a terminal."""

from __future__ import annotations

import pytest

from experiments.common.printable import printable, without_codes


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
