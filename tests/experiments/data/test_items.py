"""An answer is right when it is the same text, whatever its case, space and full stop."""

from __future__ import annotations

import pytest

from experiments.data.items import exact_match


class TestExactMatch:
    @pytest.mark.parametrize(
        ("said", "answer"),
        [
            ("Paris", "paris"),
            ("  New\tYork. ", "new york"),
            ("1,007", "1007"),
            ("12.0", "12"),
            ("9007199254740993", "9,007,199,254,740,993"),
            ("-0", "0"),
            ("It is in France.\nAnswer: Paris", "Paris"),
        ],
    )
    def test_right(self, said: str, answer: str) -> None:
        assert exact_match(said, {"answer": answer}) == 1.0

    @pytest.mark.parametrize(
        ("said", "answer"),
        [
            ("Paris, France", "Paris"),
            ("", "Paris"),
            ("1.007", "1007"),
            ("9007199254740993", "9007199254740992"),
            ("123456789012345678901234567891", "123456789012345678901234567892"),
            ("123", "1,2,3"),  # a list
            ("12,3", "1,23"),
        ],
    )
    def test_wrong(self, said: str, answer: str) -> None:
        assert exact_match(said, {"answer": answer}) == 0.0
