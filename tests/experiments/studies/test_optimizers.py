"""Optuna's samplers and pruners by their names in a study's YAML: tables, options, budgets, ranges."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from experiments.common.errors import ConfigError
from experiments.studies.config import PRUNERS, SAMPLERS
from experiments.studies.optimizers import PRUNERS as OPTUNA_PRUNERS
from experiments.studies.optimizers import SAMPLERS as OPTUNA_SAMPLERS
from experiments.studies.optimizers import check_options, importances, waiting
from experiments.studies.trial import TrialPruned
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.toy_study import (
    RANGES,
    open_store,
    quiet,
    toy_study,
    value,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_the_tables_name_the_same_variants() -> None:
    assert tuple(OPTUNA_SAMPLERS) == SAMPLERS
    assert tuple(OPTUNA_PRUNERS) == PRUNERS


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "gp" else n for n in SAMPLERS if n != "grid"]
)
def test_every_sampler_keeps_to_budget_and_ranges(tmp_path: Path, name: str) -> None:
    options = {"n_startup_trials": 2} if name in ("tpe", "gp") else {}
    budget = {"trials": 4}
    store = open_store(tmp_path, search=RANGES, sampler={"name": name, "options": options}, budget=budget)
    store.work(lambda number, picks, report: TrialOutcome([value(picks)]), quiet)
    trials = store.trials()
    assert [trial.state for trial in trials] == ["complete"] * 4
    assert all(1e-4 <= t.picks["rate"] <= 1e-1 and t.picks["training.steps"] in range(1, 9) for t in trials)
    assert len({tuple(t.picks.values()) for t in trials}) == 4
    again = open_store(tmp_path / "again", search=RANGES, sampler={"name": name, "options": options}, budget=budget)
    again.work(lambda number, picks, report: TrialOutcome([value(picks)]), quiet)
    assert [t.picks for t in again.trials()] == [t.picks for t in trials]  # the seed decides


def test_pruner_stops_what_is_worse_than_the_median(tmp_path: Path) -> None:
    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        for step in range(1, 4):
            if report(step, value(picks) * step):
                raise TrialPruned(TrialOutcome([], {}, [{"seed": 0}]), f"at {step}")
        return TrialOutcome([value(picks)])

    pruner = {"name": "median", "options": {"n_startup_trials": 2}}
    rising = {"training.steps": {"kind": "choice", "values": [3, 4, 1, 5]}, "rate": {"kind": "choice", "values": [0.1]}}
    rising["rate"]["path"] = "arms.0.learning_rates.0"  # type: ignore[assignment]
    store = open_store(tmp_path, search=rising, pruner=pruner)
    store.work(run, quiet)
    assert [t.state for t in store.trials()] == ["complete", "complete", "pruned", "complete"]
    assert (store.trials()[2].reason, store.trials()[2].runs) == ("at 1", [{"seed": 0}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": {"name": "grid", "options": {"n": 1}}}, "sampler.options.n: grid has no such option"),
        (
            {"sampler": {"name": "tpe", "options": {"n_startup_trial": 1}}, "budget": {"trials": 1}},
            "did you mean 'n_startup_trials'",
        ),
        ({"pruner": {"name": "percentile"}}, "pruner 'percentile': .*percentile"),
    ],
)
def test_options_are_checked_before_anything_runs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_options(toy_study(**change))


@pytest.mark.parametrize(
    ("change", "trials", "said"),
    [
        ({"pruner": "median"}, 5, ["pruner 'median' stops none of 5 trials early: it waits until n_startup_trials=5"]),
        ({"pruner": "median"}, 6, []),
        ({"pruner": {"name": "median", "options": {"n_startup_trials": 2}}}, 3, []),
        ({"pruner": "hyperband"}, 1, []),
        (
            {"sampler": "tpe", "budget": {"trials": 9}},
            9,
            ["sampler 'tpe' draws all 9 trials at random: it waits until n"],
        ),
        ({"sampler": "tpe", "budget": {"trials": 11}}, 11, []),
        ({"sampler": "nsga2", "budget": {"trials": 50}}, 50, ["until population_size=50 are complete. Lower that"]),
        ({"sampler": "random", "budget": {"trials": 1}}, 1, []),
        ({"sampler": "gp", "budget": {"hours": 1}}, None, []),
    ],
)
def test_too_few_trials_for_a_sampler_or_a_pruner_are_said(
    change: dict[str, Any], trials: int | None, said: list[str]
) -> None:
    found = list(waiting(toy_study(**change), trials))
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


@pytest.mark.parametrize(("trials", "least", "most"), [(8, 0.25, 0.6), (16, 0.1, 0.4), (32, 0.0, 0.05)])
def test_importances_of_few_trials_are_a_hint(trials: int, least: float, most: float) -> None:
    """Reports say how often a dimension without effect has more than .3 (`pictures.FEW_TRIALS`): half of the variance
    is that of one dimension, the other half is noise."""
    search: dict[str, Any] = {name: optuna.distributions.FloatDistribution(0, 1) for name in "xy"}
    search["k"] = optuna.distributions.CategoricalDistribution(["a", "b", "c"])
    config: Any = SimpleNamespace(search=search, objectives=(SimpleNamespace(figure="gain"),))
    alarms = 0
    for seed in range(40):
        rng, study = np.random.default_rng(seed), optuna.create_study()
        for _ in range(trials):
            picks = {"x": rng.random(), "y": rng.random(), "k": str(rng.choice(["a", "b", "c"]))}
            value = np.sqrt(12) * picks["x"] + rng.normal()
            study.add_trial(optuna.create_trial(params=picks, distributions=search, value=float(value)))
        shares = importances(study, config)["gain"]
        alarms += max(shares["y"], shares["k"]) > 0.3
    assert least <= alarms / 40 <= most, alarms
