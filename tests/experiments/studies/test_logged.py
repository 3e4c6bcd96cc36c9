"""What a trial's run in MLflow gets: means over its seeds, and intervals that hold the seeds too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.records import ArmResult, read_records, write_records
from experiments.reporting.text import figure_text
from experiments.scorecard import over_seeds, scorecard
from experiments.studies.logged import DRAWS, log_figures
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.planted_study import BASE, records
from tests.helpers.toy_study import toy_study


class FakeRun:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.tags: dict[str, str] = {}
        self.params: dict[str, Any] = {}

    def log_new(self, values: dict[str, float], step: int) -> None:
        self.metrics |= values

    def log_params(self, params: dict[str, Any]) -> None:
        self.params |= params

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags


def outcome(root: Path, seeds: int) -> TrialOutcome:
    """A trial whose seeds gained and kept different shares."""
    runs = []
    for seed in range(seeds):
        base, after = records(9, *BASE), records(seed, 0.5 + 0.1 * seed, 0.6)
        write_records(root / f"runs/r{seed}/base/items.jsonl", base)
        write_records(root / f"runs/r{seed}/arms/full-0.001/items-20.jsonl", after)
        result = ArmResult("full", "full", 1e-3, "finished", None, 20, [], scorecard(base, after, 100))
        runs.append({"seed": seed, "folder": f"runs/r{seed}", "result": result.to_dict()})
    gains = [run["result"]["scorecard"]["gain"]["value"] for run in runs]
    return TrialOutcome([sum(gains) / seeds], runs=runs)


def test_several_seeds_have_intervals_over_seeds_and_questions(tmp_path: Path) -> None:
    trial, run = outcome(tmp_path, 3), FakeRun()
    log_figures(toy_study(seeds=[0, 1, 2]), trial, run, tmp_path)  # type: ignore[arg-type]
    pairs = [(read_records(tmp_path / f"runs/r{i}/base/items.jsonl"),
              read_records(tmp_path / f"runs/r{i}/arms/full-0.001/items-20.jsonl")) for i in range(3)]  # fmt: skip
    card = over_seeds(pairs, DRAWS)
    assert run.tags == {f"interval/{name}": figure_text(card, name) for name in ("gain", "retention", "kl")}
    assert run.metrics["gain"] == pytest.approx(card["gain"].value)
    assert (run.params["method"], run.params["learning_rate"]) == ("full", 1e-3)
    assert trial.figures["gain"] == run.metrics["gain"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_seed_or_lost_records_give_no_interval(seeds: int, tmp_path: Path) -> None:
    """The arm of one seed is the same run in MLflow, and has tags of its own."""
    trial, run = outcome(tmp_path, seeds), FakeRun()
    (tmp_path / f"runs/r{seeds - 1}/base/items.jsonl").unlink()
    log_figures(toy_study(seeds=list(range(seeds))), trial, run, tmp_path)  # type: ignore[arg-type]
    assert run.tags == {}
    assert ("gain" in run.metrics) == (seeds > 1)
