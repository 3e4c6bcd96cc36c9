"""Conditions of the gate: which bound is asked, and what is refused."""

from __future__ import annotations

import pytest

from experiments.common.errors import ConfigError
from experiments.measure.config import measure_config
from experiments.measure.gate import Condition, conditions
from experiments.records import ArmResult, Estimate

CONFIG = measure_config("base", suites=["kept", "drift"])
CARD = {
    "retention": Estimate(0.97, 0.95, 0.99),
    "kl": Estimate(0.02, 0.01, 0.03),
    "mcnemar_p": Estimate(0.2),
    "retention_adjusted": Estimate(float("nan"), float("nan"), float("nan")),
}
RESULT = ArmResult("mine", "measured", 0.0, "finished", scorecard=CARD)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("retention >= .95", True),
        ("retention>.95", False),
        ("retention >= 0.951", False),  # though its value is above
        ("kl <= .03", True),
        ("kl < 3e-2", False),
        ("kl <= 0.029", False),
        ("mcnemar_p >= .2", True),  # no interval: the value itself
        ("retention_adjusted >= 0", False),  # not a number
    ],
)
def test_the_bound_must_hold(text: str, holds: bool) -> None:
    (condition,) = conditions([text], CONFIG)
    found, line = condition.judge(RESULT, {})
    assert found is holds
    assert line.startswith(f"{'pass' if holds else 'FAIL'}  mine: {condition.text}: ")


@pytest.mark.parametrize(
    "text", ["retention >= .9", "kl <= .05", "retention_adjusted >= .9", "retention/capitals >= .9"]
)
def test_a_figure_without_its_interval_fails(text: str) -> None:
    """One reply, or a base at chance: the value alone says nothing. It once passed by it."""
    (condition,) = conditions([text], CONFIG)
    value = 0.01 if condition.figure == "kl" else 5.0
    result = ArmResult("mine", "measured", 0.0, "finished", scorecard={condition.figure: Estimate(value)})
    holds, line = condition.judge(result, {})
    assert not holds
    assert line.endswith("no interval: too few items were measured")


def test_a_base_that_answers_nothing_shows_no_forgetting() -> None:
    """Its flips are none, whatever the model does: a wrong template of the base would pass every gate."""
    none, nan = Estimate(0.0, -0.01, 0.0), Estimate(float("nan"), float("nan"), float("nan"))
    card = {
        "forgetting": none,
        "nfr": Estimate(0.0, 0.0, 0.01),
        "retention": nan,
        "kept_accuracy": Estimate(0.4, 0.3, 0.5),
    }
    result = ArmResult("mine", "measured", 0.0, "finished", scorecard=card)
    for text in ("forgetting <= .05", "nfr <= .05", "retention >= .9"):
        (condition,) = conditions([text], CONFIG)
        holds, line = condition.judge(result, {})
        assert not holds
        assert "its base answers none of the kept questions" in line
    (condition,) = conditions(["kept_accuracy >= .2"], CONFIG)
    assert condition.judge(result, {})[0]


def test_the_line_has_figure_interval_and_bound() -> None:
    assert Condition("retention", ">=", 0.98).judge(RESULT, {}) == (
        False,
        "FAIL  mine: retention >= 0.98: .970 [.950,.990], bound 0.9500",
    )


def test_a_figure_that_was_not_measured_fails_with_the_reason() -> None:
    holds, line = Condition("nfr", "<=", 0.1).judge(RESULT, {"kept": "another tokenizer"})
    assert not holds
    assert line == "FAIL  mine: nfr <= 0.1: not measured (suite kept is left out: another tokenizer)"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("retention", r"write FIGURE >= NUMBER, for example"),
        ("retention >= high", r"write FIGURE >= NUMBER"),
        ("retenton >= .9", r"no figure 'retenton' is measured here: did you mean 'retention'"),
        ("perplexity_drift <= .1", r"no figure 'perplexity_drift' is measured here"),  # its suite is not
        ("retention <= .98", r"of retention, higher is better: write retention >= 0\.98"),
        ("kl >= .1", r"of kl, lower is better: write kl <= 0\.1"),
        ("forgetting <= 5", r"it is at most 1, so this always holds; for 5 % write 0\.05"),  # no gate at all
        ("kept_parse_failures <= 5", r"it is at most 1, so this always holds; for 5 % write 0\.05"),
        ("nfr_above_floor <= 5", r"it is at most 1, so this always holds; for 5 %"),
        ("nfr <= 1", r"so this always holds; for 1 % write 0\.01"),
        ("kept_accuracy >= 70", r"so this never holds; for 70 % write 0\.7"),
    ],
)
def test_a_wrong_condition_is_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        conditions([text], CONFIG)


def test_a_limit_that_a_figure_can_pass_is_one() -> None:
    assert len(conditions(["forgetting <= .99", "kept_accuracy >= 1", "retention >= 1.5", "kl <= 50"], CONFIG)) == 4


def test_a_member_of_a_family_can_be_named() -> None:
    assert conditions(["retention/past tense >= .9", "retention_chat >= .9"], CONFIG) == [
        Condition("retention/past tense", ">=", 0.9),
        Condition("retention_chat", ">=", 0.9),
    ]
