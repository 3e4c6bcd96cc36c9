"""A study's YAML: what it refuses, and what makes two studies the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from experiments.common.errors import ConfigError
from experiments.common.hashing import json_digest
from experiments.common.paths import SHIPPED
from experiments.posthoc.operations import OPERATIONS
from experiments.studies.config import NOT_IDENTITY, SAMPLERS, Posthoc
from experiments.studies.load import parse_study
from experiments.studies.space import DIMENSIONS
from tests.helpers.study_of_one_arm import RATE, values
from tests.helpers.toy_study import SEARCH, toy_study


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serch": {}}, "serch: unknown key; did you mean 'search'"),
        ({"budget": {"trial": 3}}, "budget.trial: unknown key; did you mean 'trials'"),
        ({"objectives": [{"figure": "gain", "directon": "maximize"}]}, "did you mean 'direction'"),
        ({"search": {"x": {"kind": "flaot", "low": 0, "high": 1}}}, "x: unknown kind 'flaot': did you mean 'float'"),
        ({"search": {"x": {"kind": "int", "low": 0, "hgih": 1}}}, "unknown key; did you mean 'high'"),
        ({"search": {"x": {"kind": "int", "low": 3, "high": 1}}}, "low must be below high, but got 3 and 1"),
        ({"search": {"x": {"kind": "float", "low": 0, "high": 1, "log": True}}}, "log needs low > 0, but got 0"),
        ({"search": {"x": {"kind": "choice", "values": [1, 1]}}}, "values must differ"),
        ({"search": {"x": {"kind": "choice", "values": ["[1, 2]", [1, 2]]}}}, "values must differ"),
        ({"search": {"training.weight_decay": {"kind": "float", "low": 0, "high": 1}}}, "give a step, or kind choice"),
        ({"sampler": "tpee"}, "unknown sampler 'tpee': did you mean 'tpe'"),
        ({"sampler": "tpe"}, "sampler 'tpe' never ends: give budget.trials or budget.hours"),
        ({"pruner": "medain"}, "unknown pruner 'medain': did you mean 'median'"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"report": {"select": "rate"}}, "report.select 'rate' is not searched"),
        ({"constraints": [{"figure": "kl"}]}, "constraint on 'kl' needs min or max"),
        ({"objectives": [{"figure": "gian", "direction": "maximize"}]}, "no figure 'gian' .*: did you mean 'gain'"),
        (
            {"objectives": [{"figure": "gain + kept_acuracy", "direction": "maximize"}]},
            "no figure 'kept_acuracy' .*: did you mean 'kept_accuracy'",
        ),
        ({"constraints": [{"figure": "retention/capitls", "min": 0}]}, "did you mean 'retention/capitals'"),
        ({"constraints": [{"figure": "cost/second", "max": 9}]}, "did you mean 'cost/seconds'"),
        (
            {"constraints": [{"figure": "instructions_accuracy", "min": 0}]},
            "no figure 'instructions_accuracy' with the suites new, kept, drift, text",
        ),
        ({"posthoc": [{"arm": "a", "op": "wise"}]}, "wise of 'a' needs alpha"),
        (
            {
                "search": {"arm": {"kind": "arms", "arms": {"long": {}}}},
                "posthoc": [{"arm": "lnog", "op": "merge"}],
            },
            "posthoc: unknown arm 'lnog': did you mean 'long'",
        ),
        (
            {"objectives": [{"figure": f, "direction": "maximize"} for f in ("a", "b")], "pruner": "median"},
            "pruning needs a single objective",
        ),
        (
            {"objectives": [{"figure": "stream_op", "direction": "maximize"}], "pruner": "median"},
            "but 'stream_op' is known only at the end",
        ),
        (
            {"objectives": [{"figure": "stream_op", "direction": "maximize"}]},
            "no figure 'stream_op' with the suites new",
        ),
    ],
)
def test_faults_of_the_study_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.").replace(r"\.*", ".*")):
        parse_study(values(**change))


def test_a_list_of_wrong_entries_is_not_called_too_short() -> None:
    with pytest.raises(ConfigError, match=r"objectives\.0\.figur: unknown key; did you mean 'figure'") as error:
        parse_study(values(objectives=[{"figur": "gain", "direction": "maximize"}]))
    assert "at least 1" not in str(error.value)


def test_a_base_of_several_arms_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="the base has 3 arms with 4 learning rates in all: set `arms` under overrides"
    ):
        parse_study(values(overrides={}))


@pytest.mark.parametrize("inlined", [False, True])
def test_a_study_without_seeds_has_that_of_its_base(inlined: bool, tmp_path: Path) -> None:
    base = {**yaml.safe_load((SHIPPED / "quickstart.yaml").read_text()), "seed": 5}
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump(base))
    given = base if inlined else str(file)
    study = parse_study(values(base=given))
    assert (study.seeds, study.run_config({RATE: 1e-3}, 0, study.seeds[0]).seed) == ((5,), 5)
    assert parse_study(values(base=given, seeds=[0])).seeds == (0,)
    assert parse_study({**study.to_dict(), "seeds": [0]}).seeds == (0,)  # as trials of before were kept


def test_identity_and_profiles() -> None:
    study = parse_study(values(profiles={"big": {"training.steps": 500}}))
    assert study.identity() == parse_study(values(budget={"trials": 1}, retries=9)).identity()
    assert study.identity() != parse_study(values(seeds=[1])).identity()
    big = parse_study(values(profiles={"big": {"training.steps": 500}}), "big")
    assert (big.name, big.run_config({RATE: 1e-3}, 0, 0).training.steps) == ("s-big", 500)
    assert parse_study(big.to_dict()) == big  # as it is kept with the trials
    with pytest.raises(ConfigError, match="no profile 'bigg': did you mean 'big'"):
        parse_study(values(profiles={"big": {}}), "bigg")


def test_tables() -> None:
    assert set(get_args(Posthoc.model_fields["op"].annotation)) <= set(OPERATIONS)
    assert set(DIMENSIONS) == {"choice", "arms", "int", "float"}
    assert set(SAMPLERS) == {"grid", "random", "tpe", "nsga2", "gp"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*experimental")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"search": {"seed": {"kind": "choice", "values": [0, 1]}}}, "list the seeds of each trial under seeds"),
        ({"overrides": {"seed": 7}}, "list the seeds of each trial under seeds"),
        ({"overrides": {"name": "x"}}, "runs are named by study, trial and seed"),
        ({"search": SEARCH | {"again": {**SEARCH["rate"]}}}, "two dimensions set 'arms.0.learning_rates.0'"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"constraints": [{"figure": "kl", "min": 2, "max": 1}]}, "min=2 is above max=1"),
        (
            {"search": {"training.weight_decay": {"kind": "float", "low": 0, "high": float("inf")}}, "sampler": "tpe"},
            r"high: Input should be a finite number \(got inf\)",
        ),
    ],
)
def test_values_that_could_not_work_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        toy_study(**change)


def test_a_study_without_a_budget_of_kl_is_the_one_of_before() -> None:
    """Its trials, kept before there was this field, can be taken over."""
    plain, limited = toy_study(), toy_study(kl_budget=0.1)
    kept = {key: value for key, value in plain.to_dict().items() if key not in {*NOT_IDENTITY, "kl_budget"}}
    assert plain.identity() == json_digest(kept)[:12]
    assert limited.identity() != plain.identity()
