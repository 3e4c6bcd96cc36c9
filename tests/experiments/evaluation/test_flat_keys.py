"""Flat keys of earlier versions and keys of suites: both set the same field, and values come back from both forms."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.cli.run import overrides
from experiments.common.errors import ConfigError
from experiments.common.yaml_values import load_yaml
from experiments.config import load_config, parse_config, set_value
from experiments.evaluation.flat_keys import FLAT, replaces
from experiments.evaluation.suites import SUITES
from experiments.measure.config import measure_config
from tests.helpers.one_arm import ARMS, config_of


@pytest.mark.parametrize("evaluation", [{}, {"replies": 9}, {"suites": {"new": {}, "drift": {"replies": 9}}}])
@pytest.mark.parametrize("key", ["replies", "suites.drift.replies"])
def test_both_keys_of_a_setting_work_on_both_forms(evaluation: dict[str, Any], key: str) -> None:
    values: dict[str, Any] = {"name": "x", "evaluation": evaluation, "arms": ARMS}
    set_value(values, f"evaluation.{key}", 4)
    config = parse_config(values).evaluation
    assert config.settings("drift").replies == 4
    assert config.suites == config_of(evaluation).evaluation.suites


@pytest.mark.parametrize(
    ("later", "key", "does"),
    [
        ("evaluation.kept_items", "evaluation.suites.kept.items", True),
        ("evaluation.suites.kept", "evaluation.kept_items", True),
        ("evaluation.suites.kept.items", "evaluation.suites.kept", False),
        ("evaluation.lm_eval", "evaluation.suites.lm_eval.kept", True),
        ("arms.00.method", "arms.0.method", True),
        ("data.new", "data.newest", False),
    ],
)
def test_a_key_that_is_set_later_replaces_another(later: str, key: str, does: bool) -> None:
    assert replaces(later, key) is does


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


def test_settings_of_a_suite_that_is_not_measured_are_kept_as_flat_keys() -> None:
    config = config_of({"suites": ["new"], "perplexity_tokens": 64, "kept_items": 100})
    assert config.evaluation.settings("text").tokens == 64
    assert config.to_dict()["evaluation"] == {
        "every": 20, "suites": {"new": {}}, "new_items": 128, "bootstrap": 10_000, "perplexity_tokens": 64,
    }  # fmt: skip


FLAT_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "every": st.integers(1, 9),
    "new_items": st.integers(1, 9),
    "bootstrap": st.just(100),
    "kept_tasks": st.sampled_from([["agreement"], ["plurals", "capitals"]]),
    "kept_items": st.sampled_from([4, 100, "all"]),
    "kept_generated": st.booleans(),
    "aa_floor": st.booleans(),
    "instruction_items": st.integers(39, 41),
    "replies": st.integers(15, 17),
    "new_replies": st.integers(0, 1),
    "reply_tokens": st.integers(1, 3),
    "perplexity_tokens": st.sampled_from([64, 2048]),
    "lm_eval": st.sampled_from([{"kept": ["mmlu"], "limit": 7}, {"preset": "paper_math"}]),
    "suites": st.lists(st.sampled_from(sorted({*SUITES} - {"lm_eval"})), unique=True, min_size=1),
}


@settings(deadline=None, max_examples=30)
@given(st.fixed_dictionaries({}, optional=FLAT_VALUES))
def test_flat_values_come_back_from_both_forms(values: dict[str, Any]) -> None:
    values = dict(values)
    if "lm_eval" in values:
        values["suites"] = [*values.get("suites", ["new"]), "lm_eval"]
    config = config_of(values)
    flat = config.to_flat()
    given_ones = {key: value for key, value in values.items() if key != "lm_eval"}
    assert given_ones.items() <= flat["evaluation"].items()
    for plain in (config.to_dict(), flat, load_yaml(yaml.safe_dump(config.to_dict(), sort_keys=False))):
        assert parse_config(plain) == config
        assert parse_config(plain).digest() == config.digest()
    for key in {*FLAT, "every"} & values.keys() - {"lm_eval"}:  # as an older study sets them
        again = config_of({}).to_dict() if "lm_eval" not in values else config.to_dict()
        set_value(again, f"evaluation.{key}", values[key])
        assert parse_config(again).to_flat()["evaluation"][key] == values[key]


@pytest.mark.parametrize("key", sorted(FLAT))
def test_two_names_of_one_field_with_two_values_are_refused(key: str) -> None:
    """In a file, also one that `--set` changes elsewhere, and on the command line."""
    suite, *field = FLAT[key]
    name = field[0] if field else "limit"
    values: dict[str, Any] = {"name": "x", "arms": ARMS}
    values["evaluation"] = {"suites": ["new", {suite: {name: 1}}], key: 2 if field else {name: 2}}
    flat_key = key if field else f"{key}.{name}"
    said = rf"{flat_key}=2 and suites\.{suite}\.{name}=1 are two names of one field: leave one out"
    with pytest.raises(ConfigError, match=rf"evaluation: {said}"):
        parse_config(values)
    with pytest.raises(ConfigError, match=said):
        set_value(values, "evaluation.every", 5)
    both = [f"evaluation.{flat_key}=2", f"evaluation.suites.{suite}.{name}=1"]
    for first, second in (both, both[::-1]):
        with pytest.raises(ConfigError, match=f"--set {second} replaces --set {first.partition('=')[0]}: leave one"):
            overrides([first, second])
    if not field:
        return  # `--set lm_eval.limit` is one name in a measurement
    with pytest.raises(ConfigError, match=rf"--set {suite}\.{name} replaces --set {flat_key}: leave one out"):
        measure_config("m", changes={flat_key: 2, f"{suite}.{name}": 1})


def test_a_list_of_suites_may_follow_a_flat_key_on_the_command_line() -> None:
    values = overrides(["evaluation.kept_items=50", "evaluation.suites=[kept]"])
    config = load_config("quickstart", values).evaluation
    assert (config.suites, config.settings("kept").items) == (("kept",), 50)


def test_every_setting_of_earlier_versions_has_its_place() -> None:
    for suite, *field in FLAT.values():
        assert set(field) <= SUITES[suite].Settings.model_fields.keys()
