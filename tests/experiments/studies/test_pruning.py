"""A pruner that can stop no trial early is refused."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.studies.load import parse_study
from tests.helpers.tiny_study import study_values, tiny_study

OBJECTIVES = [{"figure": "gain", "direction": "maximize"}]


@pytest.mark.parametrize(
    ("every", "seeds", "fault"), [(None, [0], True), (99, [0], True), (1, [0], False), (99, [0, 1], False)]
)
def test_a_pruner_needs_an_evaluation_before_the_end(every: int | None, seeds: list[int], fault: bool) -> None:
    """It stopped trials at their last step, or none: of several seeds each has an end."""
    given = {
        "pruner": {"name": "threshold", "options": {"upper": 1}},
        "seeds": seeds,
        "objectives": [{"figure": "gain", "direction": "maximize"}],
    }
    said = r"pruner: a trial is measured at its end alone \(evaluation.every=(null|99)"
    with pytest.raises(ConfigError, match=said) if fault else nullcontext():
        tiny_study("no-model", **given, overrides={"evaluation.every": every})


LATE = r"stops no trial before step {} \({}\), but the last evaluation before a trial's end is after step {}: lower"


@pytest.mark.parametrize(
    ("name", "options", "changes", "said"),
    [
        ("threshold", {"upper": 1, "n_warmup_steps": 3}, {}, LATE.format(3, "n_warmup_steps", 2)),
        ("threshold", {"upper": 1, "n_warmup_steps": 2}, {}, ""),
        ("threshold", {"upper": 1, "n_warmup_steps": 6}, {"seeds": [0, 1]}, ""),
        ("threshold", {"upper": 1, "n_warmup_steps": 7}, {"seeds": [0, 1]}, LATE.format(7, "n_warmup_steps", 6)),
        ("halving", {"min_early_stopping_rate": 1}, {}, LATE.format(4, "min_early_stopping_rate", 2)),
        ("halving", {"min_resource": "auto"}, {}, ""),
        ("hyperband", {"min_resource": 3}, {}, LATE.format(3, "min_resource", 2)),
    ],
)
def test_a_pruner_that_waits_for_too_long_is_refused(
    name: str, options: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    """A trial has four steps, and is measured after two and four. A study that has begun may go on."""
    pruner = {"name": name, "options": options}
    values = study_values("no-model", objectives=OBJECTIVES, pruner=pruner, **changes)
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        parse_study(values)
    assert parse_study(values, begun=True).pruner
