"""The rule that chooses a point, and barriers on a path."""

from __future__ import annotations

import pytest

from experiments.measure.gate import Condition
from experiments.posthoc.choice import Point
from experiments.records import Estimate
from experiments.soften.choice import barrier, choose


def point(alpha: float, gain: float | None, lost: float, width: float = 0.1) -> Point:
    card = {"nfr": Estimate(lost, 0.0, lost + 0.02), "retention": Estimate(1 - lost, 1 - lost - 0.02, 1 - lost + 0.02)}
    if gain is not None:
        card["gain"] = Estimate(gain, gain - width, gain + width)
    return Point(alpha, card)


def chosen(points: list[Point], *conditions: Condition) -> float | None:
    best, rule = choose(points, conditions)
    assert rule
    return best.alpha if best else None


def test_the_fewest_lost_answers_within_one_standard_error_of_the_best_gain() -> None:
    """The standard error of the best is .1 / 1.96 = .051: .45 is near .5, .44 is not."""
    path = [
        point(0.2, 0.2, 0.0),
        point(0.4, 0.44, 0.01),
        point(0.6, 0.45, 0.05),
        point(0.8, 0.5, 0.1),
        point(1.0, 0.48, 0.3),
    ]
    assert chosen(path) == 0.6
    assert chosen([*path[:2], *path[3:]]) == 0.8
    assert chosen([point(0.5, 0.5, 0.1), point(1.0, 0.5, 0.1)]) == 0.5


def test_conditions_choose_the_highest_gain_that_meets_their_bounds() -> None:
    path = [point(0.2, 0.2, 0.0), point(0.6, 0.4, 0.05), point(1.0, 0.5, 0.3)]
    assert chosen(path, Condition("retention", ">=", 0.9)) == 0.6
    assert chosen(path, Condition("retention", ">=", 0.95)) == 0.2  # .95 is the value of .6, its bound is .93
    assert chosen(path, Condition("retention", ">=", 0.99)) is None
    assert chosen(path, Condition("retention", ">=", 0.9), Condition("nfr", "<=", 0.03)) == 0.2


def test_without_a_new_task_the_highest_alpha_that_meets_the_conditions() -> None:
    path = [point(0.2, None, 0.0), point(0.6, None, 0.05), point(1.0, None, 0.3)]
    assert chosen(path, Condition("retention", ">=", 0.9)) == 0.6


@pytest.mark.parametrize(
    ("middle", "found"),
    [((0.2, 0.05), False), ((-0.3, 0.05), "gain"), ((0.2, 0.5), "retention"), ((-0.05, 0.32), False)],
)
def test_a_barrier_is_a_middle_that_is_worse_than_both_ends(middle: tuple[float, float], found: str | bool) -> None:
    said = barrier([point(1.0, 0.5, 0.3), point(0.5, *middle)])
    assert bool(said) == bool(found)
    if isinstance(found, str) and said:
        assert f"at alpha 0.5 the {found} is" in said


def test_a_path_of_one_point_has_no_barrier() -> None:
    assert barrier([point(1.0, 0.5, 0.3)]) is None
