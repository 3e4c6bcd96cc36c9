"""One name for a whole method: what it stands for, its options, its errors, its dump."""

from __future__ import annotations

from typing import Any

import pytest

from ctrl import ControlConfig
from experiments.common.errors import ConfigError
from experiments.config import load_config, parse_config
from experiments.methods import AVERAGES, LOSS_TERMS, METHODS, TUNINGS
from experiments.methods.base import Average
from experiments.methods.config import ArmConfig
from experiments.methods.shorthands import WITHOUT_FIELDS
from tests.helpers.engine import LAYERS, OPTIONS, arm_config

*FIRST, LAST = map(repr, WITHOUT_FIELDS)
TUNINGS_IN_WORDS = f"Input should be {', '.join(FIRST)} or {LAST}"


def test_every_part_is_a_short_name() -> None:
    assert list(METHODS) == [*TUNINGS, *LOSS_TERMS, *AVERAGES]


@pytest.mark.parametrize("name", METHODS)
def test_a_short_name_stands_for_one_part_on_what_trains(name: str) -> None:
    arm = arm_config(name)
    method = arm.build()
    assert arm.method_name == name
    assert type(method.tuning) is TUNINGS.get(name, TUNINGS["full"])
    assert [isinstance(term, LOSS_TERMS[name]) for term in method.losses] == ([True] if name in LOSS_TERMS else [])
    assert isinstance(method.average, AVERAGES.get(name, Average))
    part = method.tuning if name in TUNINGS else method.losses[0] if name in LOSS_TERMS else method.average
    for option, value in OPTIONS.get(name, {}).items():
        assert getattr(part, option) == value
    if method.tuning.in_control:
        assert method.layer_choice == tuple(LAYERS["layers"])


@pytest.mark.parametrize("trains", WITHOUT_FIELDS)
@pytest.mark.parametrize("name", [*LOSS_TERMS, *AVERAGES])
def test_trains_names_what_trains(name: str, trains: str) -> None:
    values = {"name": "x", "method": name, "learning_rates": [1.0], "options": {"trains": trains}, "control": LAYERS}
    if name == "wise" and TUNINGS[trains].adapts:
        with pytest.raises(ValueError, match="wise interpolates weights"):
            ArmConfig.model_validate(values)
        return
    method = ArmConfig.model_validate(values).build()
    assert type(method.tuning) is TUNINGS[trains]
    assert method.layer_choice == (tuple(LAYERS["layers"]) if method.tuning.in_control else None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ful"}, "unknown method 'ful': did you mean 'full'"),
        ({"method": "kl", "options": {"wieght": 1}}, "unknown option 'wieght' of method 'kl': did you mean 'weight'"),
        ({"method": "full", "options": {"rank": 1}}, "unknown option 'rank' of method 'full': it has none"),
        ({"method": "partial", "options": {"layers": 1}}, "unknown option 'layers' of method 'partial': it has none"),
        ({"method": "lora", "options": {"rank": 0}}, "option rank of method 'lora': Input should be greater"),
        ({"method": "l2sp", "options": {"trains": "x"}}, f"option trains of method 'l2sp': {TUNINGS_IN_WORDS}"),
        ({"method": "stack", "control": {"structure": "hybrid"}}, "method 'stack' has structure 'stack', but"),
        ({"method": "control", "control": {"layer": 1}}, r"arms.0.control: unknown ControlConfig key 'layer'"),
        ({"method": "wise", "options": {"trains": "lora"}}, "arms.0: wise interpolates weights"),
    ],
)
def test_wrong_arms_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"name": "x", "arms": [{"name": "x", "learning_rates": [1.0], **changes}]})


def test_the_shipped_config_shows_short_names_and_products() -> None:
    names = {arm.method_name for arm in load_config("methods").arms}
    assert names & set(METHODS)
    assert {"lora+kl", "full+kl+ema", "control+kl", "full+dft"} <= names


def test_structure_methods_set_the_structure_and_survive_a_round_trip() -> None:
    for method in ("stack", "hybrid"):
        arm = ArmConfig.model_validate({"name": "x", "method": method, "learning_rates": [1.0]})
        assert arm.control.structure == method
        config = parse_config({"name": "x", "arms": [arm]})
        assert parse_config(config.to_dict()).digest() == config.digest()


def test_the_dump_has_the_keys_it_always_had() -> None:
    """It names the folders of runs: a new key would make finished runs unknown."""
    arm = ArmConfig.model_validate(
        {"name": "x", "method": "kl", "learning_rates": [1], "options": {"trains": "lora"}, "replay": 0.1}
    )
    assert arm.to_dict() == {
        "name": "x",
        "method": "kl",
        "learning_rates": [1.0],
        "options": {"trains": "lora"},
        "replay": 0.1,
        "control": ControlConfig().to_dict(),
    }
    assert list(arm.to_dict()) == ["name", "method", "learning_rates", "options", "replay", "control"]


def test_what_is_logged_has_control_only_if_the_method_reads_it() -> None:
    """MLflow's search for a divergence would otherwise find arms without copies."""
    values = {"name": "x", "method": "kl", "learning_rates": [1]}
    options = {"weight": 1.0, "tokens": "all"}
    without = ArmConfig.model_validate(values | {"options": {"trains": "lora"}})
    assert without.params() == {"options": options | {"trains": "lora"}}
    for trains, structure in {"control": "concat", "partial": "concat", "stack": "stack", "hybrid": "hybrid"}.items():
        copies = ArmConfig.model_validate(values | {"options": {"trains": trains}})
        control = ControlConfig(structure=structure).to_dict()
        assert copies.params() == {"control": control, "options": options | {"trains": trains}}
