"""A study's YAML: what it searches, what it refuses, and that every shipped one can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from experiments.common.errors import ConfigError
from experiments.config import SHIPPED
from experiments.posthoc.operations import OPERATIONS
from experiments.studies.config import SAMPLERS, Posthoc
from experiments.studies.load import load_study, parse_study
from experiments.studies.optimizers import check_options
from experiments.studies.report.paper import paper_table
from experiments.studies.space import DIMENSIONS, grid, overrides
from tests.experiments.studies.toy import toy_study

STUDIES = sorted((SHIPPED / "studies").glob("*.yaml"))
ARM = [{"name": "arm", "method": "control", "learning_rates": [1e-3], "control": {"layers": 8}}]
RATE = "arms.0.learning_rates.0"


def values(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": "s",
        "base": "quickstart",
        "overrides": {"arms": ARM},
        "search": {RATE: {"kind": "choice", "values": [1e-3, 1e-4]}},
        "objectives": [{"figure": "gain", "direction": "maximize"}],
        "sampler": "grid",
    }
    return found | changes


def test_a_trial_is_the_base_with_its_picks_and_nothing_else() -> None:
    arms = {"a": {"arms.0.control.interpolation": "dlerp"}, "b": {"arms.0": {**ARM[0], "method": "full"}}}
    search = {RATE: {"kind": "choice", "values": [1e-3, 1e-4]}, "arm": {"kind": "arms", "arms": arms}}
    study = parse_study(values(search=search, seeds=[0, 7]))
    base, trial = study.run_config({RATE: 1e-3, "arm": "a"}, 3, 0), study.run_config({RATE: 1e-4, "arm": "b"}, 4, 7)
    assert (base.name, base.seed, trial.name, trial.seed) == ("s-003-seed0", 0, "s-004-seed7", 7)
    assert (base.arms[0].name, base.arms[0].control.interpolation, base.arms[0].control.layers) == ("a", "dlerp", 8)
    assert (trial.arms[0].method, trial.arms[0].learning_rates) == ("full", (1e-4,))  # the rate on top of the arm
    assert base.training == trial.training
    assert study.run_config({RATE: 1e-3, "arm": "a"}, 3, 0).digest() == base.digest()


def test_grid_is_the_product_and_ranges_need_steps() -> None:
    search = {
        "training.steps": {"kind": "int", "low": 2, "high": 6, "step": 2},
        "training.weight_decay": {"kind": "float", "low": 0.0, "high": 0.3, "step": 0.1},
    }
    cells = grid(parse_study(values(search=search)).search)
    assert len(cells) == 12
    assert [cell["training.steps"] for cell in cells[::4]] == [2, 4, 6]
    assert [cell["training.weight_decay"] for cell in cells[:4]] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert toy_study(
        search={"x": {"kind": "choice", "path": "arms.0.control", "values": [{"layers": 1}, {"layers": 2}]}}
    )


def test_choices_may_be_sections_and_lists() -> None:
    rates = {"kind": "choice", "path": "arms.0.control.layers", "values": [2, [0, 3]]}
    study = parse_study(values(search={"layers": rates}))
    picks = [cell["layers"] for cell in grid(study.search)]
    assert picks == [2, "[0, 3]"]
    assert overrides(study.search, {"layers": "[0, 3]"}) == {"arms.0.control.layers": [0, 3]}
    assert study.run_config({"layers": "[0, 3]"}, 0, 0).arms[0].control.layers == (0, 3)


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


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"training.stps": {"kind": "int", "low": 1, "high": 2}}, "training.stps: unknown key; did you mean 'steps'"),
        ({"arms.0.control.interpolatoin": {"kind": "choice", "values": ["lerp"]}}, "interpolatoin"),
        ({"arms.0.control.interpolation": {"kind": "choice", "values": ["lerp", "lrp"]}}, "did you mean 'lerp'"),
        ({"arms.1.method": {"kind": "choice", "values": ["full"]}}, "'1' is no index into a list of 1"),
        ({"arms.x.method": {"kind": "choice", "values": ["full"]}}, "'x' is no index into a list of 1"),
        ({"training.steps.x": {"kind": "choice", "values": [1]}}, "'steps' is not a section"),
        ({"training.steps": {"kind": "int", "low": 0, "high": 2}}, "with training.steps=0:\n  training.steps: "),
        ({"arm": {"kind": "arms", "arms": {"a": {"arms.0.method": "full"}, "b": {"arms.0.method": "ful"}}}}, "arm=b"),
        ({"arms": {"kind": "choice", "values": [[*ARM, {**ARM[0], "name": "b"}]]}}, "the base has 2 arms with 2"),
    ],
)
def test_a_wrong_override_is_found_before_anything_runs(search: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(values(search=search))
    assert message in str(caught.value)


def test_a_base_of_several_arms_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="the base has 3 arms with 6 learning rates in all: set `arms` under overrides"
    ):
        parse_study(values(overrides={}))


def test_identity_and_profiles() -> None:
    study = parse_study(values(profiles={"big": {"training.steps": 500}}))
    assert study.identity() == parse_study(values(budget={"trials": 1}, retries=9)).identity()
    assert study.identity() != parse_study(values(seeds=[1])).identity()
    big = parse_study(values(profiles={"big": {"training.steps": 500}}), "big")
    assert (big.name, big.run_config({RATE: 1e-3}, 0, 0).training.steps) == ("s-big", 500)
    assert parse_study(big.to_dict()) == big  # as it is kept with the trials
    with pytest.raises(ConfigError, match="no profile 'bigg': did you mean 'big'"):
        parse_study(values(profiles={"big": {}}), "bigg")


def test_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no study nothing: .* table5"):
        load_study("nothing")
    (tmp_path / "s.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_study(tmp_path / "s.yaml")
    (tmp_path / "s.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must contain a mapping"):
        load_study(tmp_path / "s.yaml")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study(path: Path) -> None:
    """Every arm parses against the methods and sources that there are, in every profile."""
    raw = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# "), "the first line says what it shows"
    assert raw["name"] == path.stem
    for profile in (None, *raw.get("profiles", {})):
        study = load_study(path, profile)
        assert study.name == path.stem + (f"-{profile}" if profile else "")
        check_options(study)


def test_table5_has_the_papers_arms() -> None:
    study = load_study("table5")
    rows = {*study.search["arm"].points(), *(item.label for item in study.posthoc)}
    assert rows == set(paper_table().index)


def test_tables() -> None:
    assert set(get_args(Posthoc.model_fields["op"].annotation)) <= set(OPERATIONS)
    assert set(DIMENSIONS) == {"choice", "arms", "int", "float"}
    assert set(SAMPLERS) == {"grid", "random", "tpe", "nsga2", "gp"}
