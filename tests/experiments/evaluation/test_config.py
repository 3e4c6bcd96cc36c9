"""The section `evaluation`: its forms and its faults."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.config import parse_config
from experiments.evaluation.config import EvaluationConfig
from experiments.evaluation.suites import SUITES
from tests.helpers.one_arm import config_of


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


DRIFT = SUITES["drift"].Settings(replies=3)


@pytest.mark.parametrize(
    "evaluation",
    [
        {"suites": ["new", "drift"], "replies": 3},
        {"suites": {"new": None, "drift": {"replies": 3}}},
        {"suites": {"new": {}, "drift": {"replies": 3}}, "replies": 3},
        {"suites": ["new", {"drift": {"replies": 3}}]},
    ],
)
def test_each_form_says_the_same(evaluation: dict[str, Any]) -> None:
    config = config_of(evaluation).evaluation
    assert config.suites == ("new", "drift")
    assert config.settings("drift") == DRIFT
    assert config == config_of({"suites": ["new", "drift"], "replies": 3}).evaluation
    assert config.model_dump()["suites"] == {"new": {}, "drift": DRIFT.model_dump()}


def test_suites_are_measured_in_the_order_of_the_mapping() -> None:
    assert config_of({"suites": {"text": {}, "new": {}, "kept": {}}}).evaluation.suites == ("text", "new", "kept")


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


@pytest.mark.parametrize(
    ("evaluation", "steps"),
    [
        ({}, [20, 40, 60]),
        ({"suites": ["new", {"lm_eval": {"kept": ["arc_easy"]}}]}, [60]),
        ({"suites": ["new", "lm_eval"], "lm_eval": {"kept": ["arc_easy"]}}, [60]),
        ({"suites": {"lm_eval": {"kept": ["arc_easy"]}}, "every": 25}, [25, 50, 60]),
        ({"every": None}, [60]),
    ],
)
def test_a_run_with_lm_eval_is_measured_at_its_end(evaluation: dict[str, Any], steps: list[int]) -> None:
    config = config_of(evaluation)
    assert config.evaluation_steps == steps
    assert parse_config(config.to_dict()).evaluation_steps == steps
    assert parse_config(config.to_dict()).digest() == config.digest()


def test_a_kept_task_and_one_of_lm_eval_do_not_share_a_figure() -> None:
    """`retention/arc_easy` would be of the questions of both."""
    kept, tasks = {"path": "arc_easy.jsonl"}, {"kept": ["arc_easy"]}
    with pytest.raises(ConfigError, match="'arc_easy' is a kept task and one of lm_eval: give the file another `name`"):
        config_of({"suites": [{"kept": {"tasks": [kept]}}, {"lm_eval": tasks}]})
    assert config_of({"suites": [{"kept": {"tasks": [{**kept, "name": "mine"}]}}, {"lm_eval": tasks}]})
