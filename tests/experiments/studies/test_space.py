"""The search space: overrides of one cell, the grid, points of a range."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.studies.load import parse_study
from experiments.studies.space import Float, grid, overrides, picks_words, short_names
from tests.helpers.study_of_one_arm import ARM, RATE, values
from tests.helpers.toy_study import toy_study


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
    sections = {"x": {"kind": "choice", "path": "arms.0.control", "values": [{"layers": 1}, {"layers": 2}]}}
    assert parse_study(values(search=sections))


def test_points_of_a_small_step_and_of_one_that_crosses_zero() -> None:
    assert Float(low=1e-13, high=3e-13, step=1e-13).points() == [1e-13, 2e-13, 3e-13]
    assert Float(low=-0.2, high=0.2, step=0.1).points() == [-0.2, -0.1, 0, 0.1, 0.2]
    assert Float(low=0, high=90, step=30).points() == [0, 30, 60, 90]


def test_dimensions_whose_keys_end_alike_keep_their_keys() -> None:
    keys = ["data.new.0.number", "data.old.0.number", "training.steps"]
    assert list(short_names(keys).values()) == [*keys[:2], "steps"]
    search = {key: Float(low=0, high=1) for key in keys}
    assert picks_words(search, dict.fromkeys(keys, 1)) == "data.new.0.number=1 data.old.0.number=1 steps=1"


def test_choices_may_be_sections_and_lists() -> None:
    rates = {"kind": "choice", "path": "arms.0.control.layers", "values": [2, [0, 3]]}
    study = parse_study(values(search={"layers": rates}))
    picks = [cell["layers"] for cell in grid(study.search)]
    assert picks == [2, "[0, 3]"]
    assert overrides(study.search, {"layers": "[0, 3]"}) == {"arms.0.control.layers": [0, 3]}
    assert study.run_config({"layers": "[0, 3]"}, 0, 0).arms[0].control.layers == (0, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*experimental")
def test_steps_of_a_float_are_the_numbers_that_one_would_write() -> None:
    search = {"training.weight_decay": {"kind": "float", "low": 0.0, "high": 0.3, "step": 0.1}}
    assert parse_study(toy_study(search=search).to_dict()).search["training.weight_decay"].points() == [
        0,
        0.1,
        0.2,
        0.3,
    ]


def test_a_factor_multiplies_what_each_arm_has() -> None:
    arms = {"full": {"arms.0.learning_rates": [1e-4]}, "control": {}}
    rate = {"kind": "choice", "path": "arms.0.learning_rates.0", "values": [1, 0.3], "times": True}
    study = toy_study(search={"rate": rate, "arm": {"kind": "arms", "arms": arms}})
    rates = {
        (cell["arm"], cell["rate"]): study.run_config(cell, 0, 0).arms[0].learning_rates for cell in grid(study.search)
    }
    assert rates == {
        ("full", 1): (1e-4,),
        ("full", 0.3): (3e-5,),
        ("control", 1): (1e-3,),
        ("control", 0.3): (3e-4,),
    }


@pytest.mark.parametrize("values", [[0], [-1], ["1"], [True], [float("inf")], [float("nan")]])
def test_a_factor_is_a_number_above_0(values: list[Any]) -> None:
    with pytest.raises(ConfigError, match="times needs numbers above 0"):
        toy_study(search={"rate": {"kind": "choice", "path": "training.steps", "values": values, "times": True}})


@pytest.mark.parametrize("path", ["training.schedule", "training.weight_decay", "arms.0.method"])
def test_a_factor_needs_a_number_to_multiply(path: str) -> None:
    with pytest.raises(ConfigError, match="is multiplied, but it is"):
        toy_study(search={"rate": {"kind": "choice", "path": path, "values": [2], "times": True}})
