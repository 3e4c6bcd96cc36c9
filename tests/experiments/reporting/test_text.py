"""Numbers, intervals and learning rates as text."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from experiments.common.printable import escaped
from experiments.records import ArmResult, Estimate
from experiments.reporting.summary import summary
from experiments.reporting.tables import arms_table, format_table
from experiments.reporting.text import (
    format_number,
    gain_name,
    gain_text,
    hover_number,
    label,
    rate_text,
    with_interval,
)
from tests.helpers.invented_arms import text_result


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.414, True, "+.41"), (-0.414, False, "-.41"), (0.0471, False, ".05"), (1.0, False, "1.00"),
        (12.34, False, "12.34"), (0.0, True, ".00"), (-0.0001, True, ".00"), (math.nan, True, "n/a"),
        (math.inf, False, "inf"), (-math.inf, False, "-inf"),
    ],
)  # fmt: skip
def test_numbers_are_short_and_honest(value: float, signed: bool, text: str) -> None:
    assert format_number(value, signed) == text


def test_intervals_have_as_many_places_as_their_value() -> None:
    assert with_interval(Estimate(0.412, 0.05, -0.004), True) == "+.41 [.05,.00]"
    assert with_interval(Estimate(0.5)) == ".50"
    assert with_interval(None) == "-"
    nats = [with_interval(Estimate(v, v, v), places=(3, 2, 1)) for v in (0.0042, 0.0996, 0.58, 0.996, 8.47)]
    assert nats == [".004 [.004,.004]", ".10 [.10,.10]", ".58 [.58,.58]", "1.0 [1.0,1.0]", "8.5 [8.5,8.5]"]


def test_a_small_distance_is_not_written_as_none() -> None:
    """A KL of .0003 is no .000: nothing would have moved. What is smaller than rounding is."""
    texts = [with_interval(Estimate(v, v / 2, 2 * v), places=(3, 2, 1)) for v in (0.0003, 0.00004, 0.0001, 1e-8, 0)]
    assert texts == [
        ".0003 [.0001,.0006]", ".00004 [.00002,.00008]", ".0001 [.0001,.0002]", ".000 [.000,.000]", ".000 [.000,.000]",
    ]  # fmt: skip
    assert format_number(0.0003) == ".00"  # a rate
    assert [hover_number(v) for v in (0.0003, -0.0003, 1e-9, 0.9)] == ["0.0003", "-0.0003", "0.000", "0.900"]


def test_learning_rates_read_as_they_are_written() -> None:
    assert [rate_text(r) for r in (1e-3, 3e-4, 2.5e-5, 0.01, 1e-10, 0.5)] == [
        "1e-3", "3e-4", "2.5e-5", "0.01", "1e-10", "0.5",
    ]  # fmt: skip


def test_the_gain_of_texts_has_its_own_column_unit_and_words() -> None:
    results = [text_result("full", 0.2, 0.9), text_result("control", 0.1, 1.0)]
    assert gain_name(results) == "new_nll_drop"
    assert gain_text(results[0].scorecard, "new_nll_drop") == "+.20 [.19,.21] nats per token"
    assert "gain, nats" in format_table(results).splitlines()[0]
    assert "+.20 [.19,.21]" in arms_table(results).markdown()
    assert summary(results)[0] == (
        "full 1e-3 gains most on the new task: +.20 [.19,.21] nats per token, ahead of all other arms."
    )
    assert summary(results[:1])[0].startswith("full 1e-3 gains +.20 [.19,.21] nats per token on the new task")


def test_text_of_others_has_no_tag_and_no_link_in_markdown() -> None:
    assert escaped("<img src=x> ![a](http://x) [b](y) a < b") == "&lt;img src=x> ![a]\\(http://x) [b]\\(y) a &lt; b"
    assert escaped("[b]: http://x") == "[b]\\: http://x"  # the place of a link that is elsewhere


def test_each_note_in_mlflow_is_escaped() -> None:
    """It is Markdown, and has names and questions of others."""
    root = Path(__file__).parents[3] / "experiments"
    calls = [found for file in root.rglob("*.py") for found in re.findall(r"\.log_note\((.*)", file.read_text())]
    assert len(calls) >= 4
    assert all(call.startswith("escaped(") for call in calls)


def test_a_trial_has_its_rate_in_its_name_and_an_arm_that_begins_alike_has_not() -> None:
    names = {"#7 lerp": "#7 lerp", "#7": "#7", "#best": "#best 1e-3", "#1a": "#1a 1e-3", "full": "full 1e-3"}
    assert {name: label(ArmResult(name, "full", 1e-3, "finished")) for name in names} == names
