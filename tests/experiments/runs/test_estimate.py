"""The time of arms is estimated; one that cannot be timed stops no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.runs.estimate import TimeLeft, say_time
from experiments.runs.run import run_experiment
from tests.helpers.small_run import small_config


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass only when a test adds them."""
    seconds = [0.0]
    monkeypatch.setattr("experiments.runs.estimate.time.perf_counter", lambda: seconds[0])
    return seconds


def test_the_time_is_said_anew_if_steps_take_longer(clock: list[float]) -> None:
    said: list[str] = []
    left = TimeLeft({"a": 600.0, "b": 600.0}, 60, said.append)
    evaluated = left.arm("a")
    for step, seconds in ((20, 210.0), (40, 600.0)):  # as estimated; then three times as long
        clock[0] += seconds
        evaluated(step)
        assert len(said) == (step == 40)
    # 810 s for the 400 s that were predicted; 200 s of a and 600 s of b are left, times 810 / 400
    assert said == ["  about 27 min left: steps take 2.0 times as long as estimated at the start"]
    clock[0] += 400.0
    evaluated(60)
    assert len(said) == 1  # as said


def test_an_arm_that_goes_on_or_fails_is_counted_by_its_steps(clock: list[float]) -> None:
    said: list[str] = []
    left = TimeLeft({"a": 600.0, "b": 600.0}, 60, said.append)
    left.arm("a")  # fails before its first evaluation
    evaluated = left.arm("b", start=30)
    clock[0] += 1000.0
    evaluated(45)
    assert said == ["  about 17 min left: steps take 6.7 times as long as estimated at the start"]


def test_steps_that_were_done_before_are_not_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two arms of 60 steps of 2 s and six evaluations of 5 s: 150 s each; the first goes on from step 40."""
    evaluation = SimpleNamespace(evaluation_steps=range(6), training=SimpleNamespace(steps=60))
    prepared = SimpleNamespace(config=evaluation, evaluation_seconds=5.0)
    arms = [SimpleNamespace(arm=SimpleNamespace(name=n), folder=tmp_path / n, prepared=prepared) for n in "ab"]
    monkeypatch.setattr("experiments.runs.estimate.step_seconds", lambda arm: 2.0)
    monkeypatch.setattr("experiments.runs.estimate.step_reached", lambda folder: 40 * (folder.parent.name == "a"))
    said: list[str] = []
    left = say_time(arms, said.append)  # type: ignore[arg-type]
    assert sum(left.left.values()) == pytest.approx(200)
    assert left.promised[1] == pytest.approx(200)
    assert said == ["about 3 min for 2 arms of 60 steps, 40 of them done, (one step: a 2.00 s, b 2.00 s)"]


def test_a_short_time_and_an_unknown_one_are_not_said(clock: list[float]) -> None:
    said: list[str] = []
    short, unknown = TimeLeft({"a": 60.0}, 60, said.append), TimeLeft({}, 60, said.append)
    for left in (short, unknown):
        evaluated = left.arm("a")
        clock[0] += 100.0
        evaluated(50)
    assert said == []


@pytest.mark.slow
def test_an_arm_that_cannot_be_timed_stops_no_other(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def too_large(arm: Any) -> float:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr("experiments.runs.estimate.step_seconds", too_large)
    monkeypatch.setattr("experiments.runs.estimate.TIMED", 1)
    assert not run_experiment(small_config(base), tmp_path, say=said.append).failed
    assert "the time cannot be estimated (OutOfMemoryError: tried to allocate 80 GiB)" in said
