"""The section `evaluation`: its forms, its faults, and digests that stay what they were."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from experiments.common.errors import ConfigError
from experiments.common.yaml_values import load_yaml, set_field
from experiments.config import ExperimentConfig, load_config, parse_config
from experiments.evaluation.config import EvaluationConfig
from experiments.evaluation.flat_keys import FLAT
from experiments.evaluation.suites import SUITES
from experiments.evaluation.suites.text import TextSuite

ARMS = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]


def config_of(evaluation: Any) -> ExperimentConfig:
    return parse_config({"name": "x", "evaluation": evaluation, "arms": ARMS})


def test_without_any_key_everything_has_its_default() -> None:
    config = EvaluationConfig()
    assert config == config_of({}).evaluation
    assert config.to_flat() == {
        "every": 20,
        "suites": ["new", "kept", "drift", "text"],
        "new_items": 128,
        "kept_tasks": ["capitals", "continents", "past tense", "plurals"],
        "kept_items": 100,
        "kept_generated": False,
        "aa_floor": True,
        "instruction_items": 40,
        "replies": 16,
        "new_replies": 8,
        "reply_tokens": 48,
        "perplexity_tokens": 2048,
        "bootstrap": 10_000,
        "lm_eval": None,
    }


DRIFT = {"replies": 3, "new_replies": 8, "reply_tokens": 48}


@pytest.mark.parametrize(
    "evaluation",
    [
        {"suites": ["new", "drift"], "replies": 3},
        {"suites": {"new": None, "drift": {"replies": 3}}},
        {"suites": {"new": {}, "drift": {"replies": 99}}, "replies": 3},  # a flat key replaces the field
        {"suites": ["new", {"drift": {"replies": 3}}]},
    ],
)
def test_each_form_says_the_same(evaluation: dict[str, Any]) -> None:
    config = config_of(evaluation).evaluation
    assert config.suites == ("new", "drift")
    assert config.settings("drift") == SUITES["drift"].Settings(**DRIFT)
    assert config == config_of({"suites": ["new", "drift"], "replies": 3}).evaluation
    assert config.model_dump()["suites"] == {"new": {}, "drift": DRIFT}


def test_suites_are_measured_in_the_order_of_the_mapping() -> None:
    assert config_of({"suites": {"text": {}, "new": {}, "kept": {}}}).evaluation.suites == ("text", "new", "kept")


def test_settings_of_a_suite_that_is_not_measured_are_kept_as_flat_keys() -> None:
    config = config_of({"suites": ["new"], "perplexity_tokens": 64, "kept_items": 100})
    assert config.evaluation.settings("text").tokens == 64
    assert config.to_dict()["evaluation"] == {
        "every": 20, "suites": {"new": {}}, "new_items": 128, "bootstrap": 10_000, "perplexity_tokens": 64,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "faults"),
    [
        ({"suites": ["new", "kpt"]}, ["suites: unknown name 'kpt': did you mean 'kept'? known: "]),
        ({"suites": {"new": {}, "kpt": {}}}, ["suites: unknown name 'kpt': did you mean 'kept'? known: "]),
        ({"suites": ["new", "new"]}, ["suites: 'new' appears more than once"]),
        ({"suites": [{"new": {}}, "new"]}, ["suites: 'new' appears more than once"]),
        ({"suites": []}, ["suites: Tuple should have at least 1 item"]),
        ({"suites": {}}, ["suites: Tuple should have at least 1 item"]),
        ({"suites": "new"}, ["suites: Input should be a valid tuple (got 'new')"]),
        ({"suites": ["new", 3, ["kept"]]}, ["suites.1: Input should be a valid string (got 3)", "suites.2: "]),
        ({"suites": {"drift": 5}}, ["suites.drift: Input should be a valid dictionary"]),
        ({"suites": {"drift": {"repliess": 3}}}, ["suites.drift.repliess: unknown key; did you mean 'replies'?"]),
        ({"suites": [{"drift": {"replies": 0}}]}, ["suites.drift.replies: Input should be greater than or equal to 1"]),
        ({"replies": 0}, ["replies: Input should be greater than or equal to 1 (got 0)"]),
        ({"kept_tasks": ["capital"]}, ["kept_tasks: unknown name 'capital': did you mean 'capitals'? known: "]),
        ({"suites": {"kept": {"tasks": ["plurals"] * 2}}}, ["suites.kept.tasks: 'plurals' appears more than once"]),
        ({"kept_items": "al"}, ["kept_items: must be a number of 4 or more, or all (got 'al')"]),
        ({"suites": ["new"], "kept_items": 3}, ["kept_items: must be a number of 4 or more, or all (got 3)"]),
        ({"suites": {"kept": {"items": True}}}, ["suites.kept.items: must be a number of 4 or more"]),
        ({"kept_item": 9}, ["kept_item: unknown key; did you mean 'kept_items'? known: every, "]),
        ({"every": 0, "replies": 0, "suites": {"text": {"token": 9}}},
         ["every: ", "replies: ", "suites.text.token: unknown key; did you mean 'tokens'?"]),
    ],
)  # fmt: skip
def test_each_fault_is_named_where_it_was_written(section: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(ConfigError, match="config:") as caught:
        config_of(section)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(faults)
    for fault in faults:
        assert any(line.startswith(f"  evaluation.{fault}") for line in lines), lines


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


@settings(deadline=None, max_examples=60)
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
        set_field(again, f"evaluation.{key}", values[key])
        assert parse_config(again).to_flat()["evaluation"][key] == values[key]


def test_every_setting_of_earlier_versions_has_its_place() -> None:
    for suite, *field in FLAT.values():
        assert set(field) <= SUITES[suite].Settings.model_fields.keys()


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("quickstart", "a528516a"),
        ("cpt-python", "0c7903ed"),
        ("stream", "f316d842"),
    ],
)
def test_digests_are_those_of_earlier_versions(name: str, digest: str) -> None:
    """They name the folders of runs: another digest would train a finished run again."""
    assert load_config(name).digest() == digest


def test_what_is_new_has_a_digest_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config_of({"suites": ["new", "text"]}).to_flat()

    class Settings(TextSuite.Settings):
        story: str = Field("first", description="which story")

    monkeypatch.setattr(TextSuite, "Settings", Settings)
    config = config_of({"suites": ["new", "text"]}).evaluation
    assert config.to_flat() == before["evaluation"]
    monkeypatch.setattr(config, "_settings", {"text": Settings(story="second")})
    assert config.to_flat() == before["evaluation"] | {"suites": ["new", {"text": {"story": "second"}}]}
