"""A figure of a model less that of the reference, draw by draw."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.scorecard.differences import differences


def test_a_difference_is_taken_draw_by_draw_and_p_is_corrected_over_the_models() -> None:
    shared = np.random.default_rng(0).normal(0, 1, 1001)  # questions that are hard for all
    drawn = {"a": {"kl": shared}, "b": {"kl": shared + 0.5}, "c": {"kl": shared + 0.5}, "d": {}}
    found = differences(drawn, {name: {} for name in "abcd"}, "a")
    assert [(d.name, d.figure) for d in found] == [("b", "kl"), ("c", "kl")]
    for one in found:
        assert (one.value.low, one.value.high) == pytest.approx((0.5, 0.5))  # not the spread of the shared part
        assert one.p_holm == pytest.approx(min(1.0, 2 * one.p))
