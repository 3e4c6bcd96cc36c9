"""One field of plain values, set by its dotted key: in either form of the section `evaluation`."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig, load_config, parse_config, set_value

ARMS = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]


def config_of(evaluation: Any) -> ExperimentConfig:
    return parse_config({"name": "x", "evaluation": evaluation, "arms": ARMS})


@pytest.mark.parametrize("evaluation", [{}, {"replies": 9}, {"suites": {"new": {}, "drift": {"replies": 9}}}])
@pytest.mark.parametrize("key", ["replies", "suites.drift.replies"])
def test_both_keys_of_a_setting_work_on_both_forms(evaluation: dict[str, Any], key: str) -> None:
    values: dict[str, Any] = {"name": "x", "evaluation": evaluation, "arms": ARMS}
    set_value(values, f"evaluation.{key}", 4)
    config = parse_config(values).evaluation
    assert config.settings("drift").replies == 4
    assert config.suites == config_of(evaluation).evaluation.suites


def test_a_list_of_suites_leaves_their_settings_and_a_mapping_replaces_them() -> None:
    values = config_of({"suites": {"text": {"tokens": 99}, "drift": {"replies": 5}}}).to_dict()
    set_value(values, "evaluation.suites", ["new", "drift"])
    config = parse_config(values).evaluation
    assert config.suites == ("new", "drift")
    assert config.settings("drift").replies == 5
    assert config.settings("text").tokens == 99
    set_value(values, "evaluation.suites", {"drift": {"new_replies": 0}})
    config = parse_config(values).evaluation
    assert config.suites == ("drift",)
    assert (config.settings("drift").replies, config.settings("drift").new_replies) == (16, 0)


def test_the_section_of_a_suite_adds_it_and_a_flat_key_does_not() -> None:
    values = config_of({"suites": ["new"]}).to_dict()
    set_value(values, "evaluation.instruction_items", 8)
    assert parse_config(values).evaluation.suites == ("new",)
    set_value(values, "evaluation.suites.instructions", {})
    config = parse_config(values).evaluation
    assert config.suites == ("new", "instructions")
    assert config.settings("instructions").items == 40


def test_other_keys_and_other_sections() -> None:
    values: dict[str, Any] = {"name": "x", "evaluation": None, "arms": ARMS}
    for key in ("evaluation.every", "training.steps", "evaluation.lm_eval.limit"):
        set_value(values, key, 7)
    assert values["training"] == {"steps": 7}
    assert values["evaluation"]["every"] == values["evaluation"]["lm_eval"]["limit"] == 7


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluation.suites.drft.replies", 3, r"evaluation.suites: unknown name 'drft': did you mean 'drift'"),
        (
            "evaluation.suites.drift.replies.x",
            3,
            r"cannot set 'evaluation.suites.drift.replies.x': 'replies'",
        ),
        ("evaluation.every.x", 3, r"cannot set 'evaluation.every.x': 'every' is not a section"),
        ("evaluation.suites", "new", r"evaluation.suites: Input should be a valid tuple \(got 'new'\)"),
    ],
)
def test_faults(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", {key: value})
