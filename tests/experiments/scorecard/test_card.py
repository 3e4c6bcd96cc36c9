"""The scorecard against hand counts and simulated models whose true forgetting is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binom

from experiments.records import Record
from experiments.scorecard import forgetting_bound, headline_gain, scorecard, wilson
from experiments.scorecard.bootstrap import student_factor
from tests.helpers.scored_answers import answers, kept, new, simulate


def test_figures_match_a_hand_count() -> None:
    base = [kept("t", "1", f, 1) for f in ("chat", "plain")] + [kept("t", "2", f, 1) for f in ("chat", "plain")]
    base += [kept("u", "3", f, 0) for f in ("chat", "plain")] + [kept("u", "4", f, 1) for f in ("chat", "plain")]
    after = [
        kept("t", "1", "chat", 0),
        kept("t", "1", "plain", 1),
        kept("t", "2", "chat", 1),
        kept("t", "2", "plain", 1),
    ]
    after += [
        kept("u", "3", "chat", 1),
        kept("u", "3", "plain", 0),
        kept("u", "4", "chat", 0),
        kept("u", "4", "plain", 0),
    ]
    base += [new(str(i), int(i < 1)) for i in range(10)]
    after += [new(str(i), int(i < 6), parsed=i != 9) for i in range(10)]
    card = scorecard(base, after, draws=200, seed=1)
    values = {name: estimate.value for name, estimate in card.items()}
    assert values == pytest.approx(
        {
            "new_accuracy": 0.6,
            "gain": 0.5,
            "gain_normalised": 0.5 / 0.9,
            "parse_failures": 0.1,
            "kept_accuracy": 4 / 8,
            "forgetting": 2 / 8,
            "retention": 4 / 6,
            "retention_adjusted": (4 / 8 - 1 / 4) / (6 / 8 - 1 / 4),
            "retention_chat": 2 / 3,
            "retention_plain": 2 / 3,
            "retention/t": 3 / 4,
            "retention/u": 1 / 2,
            "nfr": 3 / 8,
            "pfr": 1 / 8,
            "samplewise_forgetting": 3 / 8 - (2 / 8) * (4 / 8) / 3,
            "samplewise_backward": 1 / 8 - (2 / 8) * (4 / 8) / 3,
            "average_paper": (0.6 + 0.5) / 2,
            "average_macro": (0.6 + 3 / 4 + 1 / 4) / 3,
            "forgetting_bound": forgetting_bound(card["forgetting"], 3 / 8, 1 / 8, n=4),
            "mcnemar_p": 1.0,  # questions lost: 1 and 4; won: 3; P(at most 1 of 3 either way) = 1
        }
    )
    assert values["forgetting"] == pytest.approx(values["nfr"] - values["pfr"])


def test_replies_without_an_answer_are_counted_on_both_sides_by_question() -> None:
    """100 kept questions under two filters: the interval is of 100, not of 200."""
    base = [
        Record("kept", "gsm8k", f, str(i), correct=1, parsed=True) for f in ("strict", "flexible") for i in range(100)
    ]
    after = [dataclasses.replace(r, parsed=int(r.item) >= 50) for r in base]
    card = scorecard(base, after, draws=100)
    assert card["kept_parse_failures"] == wilson(0.5, 100)
    assert "parse_failures" not in card


def test_drift_and_perplexity_weigh_documents_by_tokens() -> None:
    def text(item: str, value: float, tokens: int) -> Record:
        return Record("text", "prose", "nll", item, value=value, tokens=tokens)

    drift = [
        Record("drift", "replies", "kl", str(i), value=v, tokens=t) for i, (v, t) in enumerate([(0.1, 30), (0.5, 10)])
    ]
    card = scorecard([text("a", 3.0, 10), text("b", 2.0, 30)], [text("a", 3.4, 10), text("b", 2.2, 30), *drift], 200)
    assert card["kl"].value == pytest.approx((0.1 * 30 + 0.5 * 10) / 40)
    assert card["perplexity_drift"].value == pytest.approx((0.4 * 10 + 0.2 * 30) / 40)
    assert (card["kl"].low, card["kl"].high) == (None, None)  # of two replies next to nothing is known
    five = [*drift, *(Record("drift", "replies", "kl", f"more {i}", value=0.2, tokens=10) for i in range(3))]
    low, high = scorecard([], five, 1000)["kl"].low, scorecard([], five, 1000)["kl"].high
    assert low is not None
    assert high is not None
    assert 0.05 < low < 0.2 < 0.2 + student_factor(5) * (0.5 - 0.2) < high
    assert set(card) == {"kl", "perplexity_drift"}


def test_a_diverged_model_gives_nan_without_an_interval() -> None:
    drift = [Record("drift", "replies", "kl", str(i), value=v, tokens=5) for i, v in enumerate((0.1, math.nan))]
    estimate = scorecard([], drift, 200)["kl"]
    assert math.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (None, None)


def test_retention_of_a_task_the_base_cannot_do_is_nan() -> None:
    card = scorecard(*answers({("t", str(i)): (0, i % 2) for i in range(8)}), draws=200)
    assert math.isnan(card["retention"].value)
    assert math.isnan(card["retention_adjusted"].value)
    assert card["forgetting"].value == pytest.approx(-0.5)


def test_two_forms_of_one_question_are_not_two_questions() -> None:
    """Identical forms must leave the interval of one form unchanged, not shrink it by sqrt(2)."""
    rng = np.random.default_rng(0)
    rows = {("t", str(i)): (int(rng.random() < 0.8), int(rng.random() < 0.6)) for i in range(150)}
    one = scorecard(*answers(rows), draws=4000, seed=5)
    base, after = (a + b for a, b in zip(answers(rows), answers(rows, "plain"), strict=True))
    both = scorecard(base, after, draws=4000, seed=5)
    width = {name: [c[name].high - c[name].low for c in (one, both)] for name in ("forgetting", "nfr")}  # type: ignore[operator]
    assert width["forgetting"][1] == pytest.approx(width["forgetting"][0], rel=0.05)
    assert width["nfr"][1] == pytest.approx(width["nfr"][0])
    assert both["mcnemar_p"] == one["mcnemar_p"]


def test_planted_forgetting_is_found_and_none_where_none_is_planted() -> None:
    rng = np.random.default_rng(2)
    planted = scorecard(*simulate(rng, 300, lost=0.2, won=0.1), draws=2000)
    assert planted["forgetting"].low > 0  # type: ignore[operator]
    assert planted["retention"].high < 1  # type: ignore[operator]
    assert planted["mcnemar_p"].value < 0.001
    base, _ = simulate(rng, 300, lost=0.2, won=0.1)
    same = scorecard(base, base, draws=2000)
    low, high = same["forgetting"].low, same["forgetting"].high
    assert same["forgetting"].value == 0
    assert low == pytest.approx(-high, rel=0.2)  # type: ignore[operator, arg-type]
    assert 1.5 / 300 < high < 3.7 / 300  # type: ignore[operator]  # 3.7: the exact bound of a count of 0
    assert same["nfr"].value == 0
    assert same["nfr"].high == pytest.approx(wilson(0.0, 300).high)
    balanced = [scorecard(*simulate(rng, 150, lost=0.05, won=0.20), draws=500) for _ in range(30)]  # a0 l = (1 - a0) w
    found = sum(not card["forgetting"].low <= 0 <= card["forgetting"].high for card in balanced)  # type: ignore[operator]
    assert found <= binom.ppf(0.9999, 30, 0.06)


def test_texts_have_a_gain_of_their_own_and_new_prompts_a_kl_of_their_own() -> None:
    def text(item: str, value: float, tokens: int) -> Record:
        return Record("new", "poems", "nll", item, value=value, tokens=tokens)

    tasks = {"base replies": 0.1, "new_prompts": 0.7, "text": 0.04, "kept plain": 0.3, "kept chat": 0.5}
    drift = [Record("drift", task, "kl", "1", value=value, tokens=5) for task, value in tasks.items()]
    card = scorecard([text("a", 3.0, 10), text("b", 2.0, 30)], [text("a", 2.6, 10), text("b", 1.8, 30), *drift], 200)
    assert card["new_nll_drop"].value == pytest.approx((0.4 * 10 + 0.2 * 30) / 40)
    lowest = 0.25 - student_factor(2) * (0.25 - 0.2)  # all weight on the document that dropped by .2
    assert lowest < card["new_nll_drop"].low < lowest + 0.2 * (0.25 - lowest)  # type: ignore[operator]
    assert headline_gain(card) == ("new_nll_drop", card["new_nll_drop"])
    assert (card["kl"].value, card["kl_new"].value, card["kl_text"].value) == pytest.approx((0.1, 0.7, 0.04))
    assert (card["kl_kept"].value, card["kl_kept_chat"].value) == pytest.approx((0.3, 0.5))
    answered = scorecard([new("1", 0)], [new("1", 1), *drift], 200)
    assert answered["eta"].value == pytest.approx(1 / 0.2)
    assert headline_gain({**card, **answered})[0] == "gain"
    with pytest.raises(KeyError, match="measure the suite `new`"):
        headline_gain({})


def test_format_figures() -> None:
    """Lengths of replies, instructions, and both accuracies of one suite, generated and by likelihood."""

    def said(item: str, reply: str, correct: int) -> Record:
        return Record("new", "sums", "generate", item, correct=correct, reply=reply)

    def picked(item: str, correct: int) -> Record:
        return Record("new", "sums", "plain", item, correct=correct, scores=(-1.0, -2.0), options=("a", "b"))

    def followed(item: str, correct: int) -> Record:
        return Record("instructions", "upper case", "generate", item, correct=correct, reply="A")

    base = [
        said("1", "12345", 0),
        said("2", "1", 0),
        picked("1", 1),
        picked("2", 1),
        followed("1", 1),
        followed("2", 1),
    ]
    after = [said("1", "1", 1), said("2", "3", 1), picked("1", 0), picked("2", 1), followed("1", 1), followed("2", 0)]
    card = {name: e.value for name, e in scorecard(base, after, 200).items()}
    assert (card["answer_length"], card["answer_length_change"]) == (1, -2)
    assert (card["new_accuracy_generated"], card["new_accuracy_likelihood"]) == (1.0, 0.5)
    assert (card["instructions_accuracy"], card["retention_instructions"]) == (0.5, 0.5)
    assert "kept_accuracy_generated" not in card


def test_harmonic_average_is_given_with_a_reference_and_zero_without_gain() -> None:
    base, after = answers({("t", str(i)): (1, int(i < 9)) for i in range(10)})
    news, learned = [new(str(i), 0) for i in range(10)], [new(str(i), int(i < 4)) for i in range(10)]
    card = scorecard(base + news, after + learned, 200, gain_reference=0.5)
    assert card["average_harmonic"].value == pytest.approx(2 * 0.9 * 0.8 / (0.9 + 0.8))
    assert scorecard(base + news, after + news, 200, gain_reference=0.5)["average_harmonic"].value == 0
    assert "average_harmonic" not in scorecard(base + news, after + learned, 200)
    with pytest.raises(ValueError, match="gain_reference must be above 0, but got -1"):
        scorecard(base + news, after + learned, 200, gain_reference=-1)
