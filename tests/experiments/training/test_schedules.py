"""Schedules against values worked out by hand, their continuity, and a resumed one."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.errors import ConfigError
from experiments.config import parse_config
from experiments.training.config import TrainingConfig
from experiments.training.schedules import SCHEDULES, infinite_factor
from tests.helpers.engine import Killed, arm_config, train


def rates(name: str, **training: Any) -> list[float]:
    """The factor at each step of training, and behind the last."""
    settings = TrainingConfig(schedule=name, **({"steps": 20, "warmup_steps": 4} | training))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = SCHEDULES[name](optimizer, settings)
    factors = []
    for _ in range(settings.steps + 1):
        factors.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return factors


def test_values_worked_out_by_hand() -> None:
    warm = [0.0, 0.25, 0.5, 0.75]
    assert rates("constant") == rates("constant_with_warmup") == warm + [1.0] * 17
    assert rates("linear") == pytest.approx(warm + [1 - i / 16 for i in range(17)])
    half = [0.1 + 0.9 * (1 + math.cos(math.pi * i / 16)) / 2 for i in range(17)]
    assert rates("cosine", min_lr_ratio=0.1) == pytest.approx(warm + half)
    # 4 warm-up, 6 cooldown, constant to step 16, 4 annealing: .5 -> .1 by a factor of 5 ** -.25 each
    cool = [0.5 + 0.25 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    anneal = [0.5 * 5 ** (-i / 4) for i in range(1, 5)]
    assert rates("infinite") == pytest.approx(warm + cool + [0.5] * 7 + anneal)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_is_continuous_and_between_0_and_1(name: str) -> None:
    factors = rates(name, steps=1000, warmup_steps=100)
    steps = [abs(b - a) for a, b in itertools.pairwise(factors)]
    assert max(steps) <= 0.01 + 1e-9  # the warm-up is the steepest part
    assert min(factors) >= 0.0
    assert max(factors) == pytest.approx(1.0)


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)])
def test_phases_of_no_length_are_left_out(shares: tuple[float, float]) -> None:
    training = TrainingConfig(
        steps=10, warmup_steps=0, schedule="infinite", cooldown_share=shares[0], anneal_share=shares[1]
    )
    factors = [infinite_factor(step, training) for step in range(11)]
    assert factors[0] == (1.0 if shares[0] else 0.5)
    assert factors[10] == pytest.approx(0.1 if shares[1] else 0.5)


def test_a_resumed_schedule_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = train(arm_config("full"), tmp_path / "a", schedule="infinite")
    with pytest.raises(Killed):
        train(arm_config("full"), tmp_path / "b", kill_at=4, schedule="infinite")
    again = train(arm_config("full"), tmp_path / "b", schedule="infinite")
    assert list(again.logs) == [3, 4, 5, 6]
    assert all(again.logs[step] == whole.logs[step] for step in again.logs)
    assert len({logs["learning_rate"] for logs in again.logs.values()}) > 1


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"schedule": "infinite", "steps": 10, "warmup_steps": 6}, "'infinite' has no room: warmup_steps=6"),
        ({"schedule": "infinite", "min_lr_ratio": 0}, "min_lr_ratio must be above 0"),
        (
            {"schedule": "infinite", "min_lr_ratio": 0.8},
            "anneals down from constant_lr_ratio=0.5, but min_lr_ratio=0.8",
        ),
        (
            {"schedule": "infinite", "steps": 7, "warmup_steps": 0, "cooldown_share": 0.5, "anneal_share": 0.5},
            "need 8 of 7 steps",
        ),
    ],
)
def test_wrong_settings_are_named(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"name": "x", "training": training, "arms": [arm_config("full")]})
