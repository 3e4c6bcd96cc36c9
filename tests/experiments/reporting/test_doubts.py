"""What would change a claim, worked out by hand from the ends of intervals."""

from __future__ import annotations

from dataclasses import replace

from experiments.records import ArmResult, Estimate
from experiments.reporting.doubts import doubt
from experiments.reporting.summary import claims
from tests.helpers.invented_arms import around, six, synthetic, untrained

ASKED = {"gain": 64, "retention": 100}


def lines(results: list[ArmResult], seeds: int = 3) -> dict[str, str]:
    """Return what is said under each claim, by the claim's beginning."""
    return {claim.text[:22]: doubt(claim, ASKED, seeds) for claim in claims(results)}


def card(result: ArmResult, **figures: Estimate) -> ArmResult:
    return replace(result, scorecard=result.scorecard | figures)


def test_a_lead_names_the_nearest_arm_on_each_side() -> None:
    """Gains have half widths of .08, so two differ by .11 or more: the largest gap, .49 - .38, needs (.113 / .11)^2."""
    said = lines(six(), seeds=1)
    assert said["control 3e-4 gains mos"] == (
        "partial 1e-3 would be the first to fall behind: the difference is .11, and if that is real, about 1.1 times "
        "as many questions (68 in place of 64) would show it"
    )
    assert said["control 3e-4 forgets l"] == (
        "the lead over partial 3e-4, the nearest below, is .07; the intervals allow for an error of .04; control 1e-3 "
        "would be the first to fall behind: the difference is .03, and if that is real, about 2.9 times as many "
        "questions (288 in place of 100) would show it"
    )


def test_a_distance_from_no_forgetting() -> None:
    """partial 3e-4 ends at .96; control 1e-3 is .025 below 1 with .03 to each side: (.03 / .025)^2 = 1.44."""
    said = lines(six(), seeds=1)
    assert said["Retention is below 1 b"] == "partial 3e-4 is nearest to 1: its interval ends at .96, .04 away"
    assert said["Not distinguishable fr"] == (
        "control 1e-3 is the first candidate: if that is real, about 1.4 times as many questions (144 in place of 100) "
        "would show it"
    )


def test_what_is_not_measured_cannot_be_shown_by_more_questions() -> None:
    kept = card(synthetic("control", 1e-3, 0.4, 1.02), gain=around(-0.01, 0.05))
    said = lines([kept])
    assert said["Not distinguishable fr"] == "no arm measures forgetting; control 1e-3 could still be at .99"
    assert said["No gain outside the in"] == "no arm measures a gain; control 1e-3 could still be at .04"
    assert said["control 1e-3 gains -.0"] == ""  # the two claims below it have their own


def test_seeds_count_too_if_there_are_several() -> None:
    pair = [synthetic("full", 1e-3, 0.40, 0.9), synthetic("control", 1e-3, 0.44, 0.9)]
    assert "about 8.0 times as many questions (512 in place of 64) and seeds (24 in place of 3)" in "".join(
        lines(pair).values()
    )
    equal = [synthetic("full", 1e-3, 0.40, 0.9), synthetic("control", 1e-3, 0.401, 0.9)]
    assert "more than 100 times as many questions would be needed: count them as equal" in "".join(
        lines(equal).values()
    )


def test_the_test_of_pairs_and_the_intervals_may_disagree() -> None:
    near = [synthetic("full", 1e-3, 0.40, 0.9), synthetic("control", 1e-3, 0.44, 0.9)]
    names = frozenset(("full 1e-3", "control 1e-3"))
    first = claims(near, {"gain": frozenset({names})})[0]
    assert doubt(first).endswith("the answers to the same questions show it, the two intervals alone would not")
    far = [synthetic("full", 1e-3, 0.1, 0.9), synthetic("control", 1e-3, 0.44, 0.9)]
    assert "compare fewer arms" in doubt(claims(far, {"gain": frozenset()})[0])


def test_without_an_interval_nothing_is_said() -> None:
    bare = card(synthetic("full", 1e-3, 0.4, 0.9), gain=Estimate(0.4), retention=Estimate(0.9))
    assert set(lines([bare]).values()) == {""}
    assert set(lines([bare, card(bare, gain=Estimate(0.2))]).values()) == {""}
    assert lines([untrained()]) == {"No arm finished with a": ""}
