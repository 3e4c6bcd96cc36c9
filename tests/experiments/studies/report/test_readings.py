"""Readings of a study: retention at a common gain, and the area that its trials dominate."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.scorecard import scorecard
from experiments.studies.queue import Store
from experiments.studies.report.readings import matched_gain, outside, pareto_volume
from experiments.studies.selection import ReportRow, choose
from experiments.studies.trial_results import record_files
from experiments.studies.trials import Trial
from tests.helpers.planted_study import objective, odd

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_retention_at_a_common_gain(some: tuple[Store, Path]) -> None:
    """Against straight lines between the figures of the reported half."""
    store, root = some
    arms = choose(store.config, store.trials(), root)
    paths = {}
    for arm in arms:
        base, _ = record_files(arm.runs[0], root)
        cards = [scorecard(odd(base), odd(record_files(arm.runs[0], root, step)[1]), 100) for step in (20, 40)]
        paths[arm.name] = [(0.0, 1.0), *((card["gain"].value, card["retention"].value) for card in cards)]
    target = min(max(gain for gain, _ in path) for path in paths.values())
    said = matched_gain(arms, root)
    assert said.startswith(f"Retention at a common gain of +{target:.2f}".replace("+0", "+"))
    for name, path in paths.items():
        gains, kept = np.array(path).T
        retention = np.interp(target, gains, kept)  # gains rise here
        assert re.search(rf"{name} {retention:.2f} \[".replace(" 0.", r" \."), said), (name, retention, said)
    assert said.index("lerp8-mse ") < said.index("full ")
    assert matched_gain(arms[:1], root) == ""
    idle = replace(arms[0], name="idle", runs=[nothing_learned(arms[0], root)])
    said = matched_gain([*arms, idle], root)
    assert f"common gain of +{target:.2f}".replace("+0", "+") in said
    assert said.endswith("Without a gain outside its interval, and so left out: idle.")
    assert matched_gain(arms, root / "elsewhere") == ""


def test_area_that_the_trials_dominate(some: tuple[Store, Path]) -> None:
    store, _ = some
    objectives = (objective("gain"), objective("kl", "minimize"))
    points = [(3.0, 3.0), (1.0, 1.0), (2.0, 2.0), (1.0, 3.0)]  # worst: 1 and 3
    trials = [replace(store.trials()[0], values=list(point)) for point in points]
    known = store.config
    store.config = known.model_copy(update={"objectives": objectives})
    said = pareto_volume(store, trials)
    store.config = known
    assert "is 1, measured" in said  # only (2, 2) is better than the worst in both
    assert "(gain 1, kl 3)" in said
    assert pareto_volume(store, trials) == ""  # one objective


def nothing_learned(arm: ReportRow, root: Path) -> dict[str, Any]:
    """The arm's run again, with the base's answers after each step."""
    run = {**arm.runs[0], "folder": "runs/idle"}
    shutil.copytree(root / arm.runs[0]["folder"], root / "runs" / "idle", dirs_exist_ok=True)
    for step in (20, 40):
        base, after = record_files(run, root, step)
        shutil.copy(base, after)
    return run


def test_trials_that_break_a_constraint_are_said() -> None:
    """The highest gain of a method may be that of a trial which is chosen for no arm."""
    limits = [{"kl <= 1": 2.0, "nfr <= 0.1": 0.0}, {"kl <= 1": -0.5, "nfr <= 0.1": 0.0}, {"kl <= 1": 0.1}, {}]
    trials = [
        Trial(i, "failed" if not found else "complete", {}, [0.5], "", 1, 1.0, i == 1, constraints=found)
        for i, found in enumerate(limits)
    ]
    arm = SimpleNamespace(name="full", trial=trials[0])
    said, lacking = outside(trials, [arm])  # type: ignore[list-item]
    assert said.startswith("Not within the constraints (kl <= 1): trial #0, #2. None of them is on the front")
    assert lacking == "No variant of these arms satisfies the constraints: full."
    assert outside(trials[1:2], []) == []
