"""Files of studies: the shipped ones can be read, a wrong override is found before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.common.errors import ConfigError
from experiments.config import SHIPPED, load_config
from experiments.studies.load import load_study, parse_study, stored_study
from experiments.studies.optimizers import check_options
from experiments.studies.space import grid
from tests.helpers.study_of_one_arm import ARM, RATE, values
from tests.helpers.toy_study import toy_study

STUDIES = sorted((SHIPPED / "studies").glob("*.yaml"))


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
        (
            {"n": {"kind": "float", "path": "training.batch_size", "low": 1, "high": 4, "step": 0.5}},
            "search: 'training.batch_size' takes whole numbers, and most of a float range are none: write kind: int",
        ),
        ({"arms.0.learning_rates": {"kind": "choice", "values": [[1e-3, 1e-4]]}}, "the base has 1 arms with 2"),
    ],
)
def test_a_wrong_override_is_found_before_anything_runs(search: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(values(search=search))
    assert message in str(caught.value)


LAYERS, STEPS = "arms.0.control.layers", {"training.steps": {"kind": "choice", "values": [20, 24]}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"search": {n: {"kind": "arms", "arms": {n * 2: {LAYERS: 4}}} for n in "ab"}},
            "search: 'arms.0.control.layers' of b replaces 'arms.0.control.layers' of a",
        ),
        (
            {
                "search": {
                    "m": {"kind": "arms", "arms": {"a": {LAYERS: 4}}},
                    LAYERS: {"kind": "choice", "values": [2, 8]},
                }
            },
            "'arms.0.control.layers' is set in each trial, which replaces 'arms.0.control.layers' of m, a",
        ),
        (
            {
                "search": {
                    "m": {"kind": "arms", "arms": {"a": {"arms.0.learning_rates": [1e-5]}}},
                    "arms.0.learning_rates.0": {"kind": "choice", "values": [1e-3, 1e-4]},
                }
            },
            "'arms.0.learning_rates.0' is set in each trial, which replaces 'arms.0.learning_rates.0' of m, a",
        ),
        (
            {
                "search": {"arms.0.control": {"kind": "choice", "values": [{"layers": 4}]}},
                "overrides": {"arms.0.control.interpolation": "slerp"},
            },
            "'arms.0.control' is set in each trial, which replaces 'arms.0.control.interpolation' of overrides",
        ),
        (
            {"search": STEPS, "overrides": {LAYERS: 4, "arms.0.control": {"interpolation": "slerp"}}},
            "overrides: 'arms.0.control' replaces 'arms.0.control.layers'",
        ),
        (
            {
                "search": {
                    "evaluation.kept_items": {"kind": "choice", "values": [8, 12]},
                    "evaluation.suites.kept.items": {"kind": "choice", "values": [8, 12]},
                }
            },
            "search: 'evaluation.suites.kept.items' replaces 'evaluation.kept_items'",
        ),
        (
            {
                "search": {"evaluation.suites.kept.items": {"kind": "choice", "values": [8, 12]}},
                "overrides": {"evaluation.kept_items": 50},
            },
            "replaces 'evaluation.kept_items' of overrides",
        ),
    ],
)
def test_a_value_that_another_replaces_in_each_trial_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(values(**more))
    assert f"{message}: leave one of both out" in str(caught.value)


def test_overrides_of_a_profile_are_last() -> None:
    given = {"arms": ARM, "evaluation.suites": {"new": {}, "kept": {"items": 8}}, "evaluation.suites.kept.items": 50}
    profile = {"evaluation.suites": {"new": {}, "kept": {"items": 16}}}
    study = parse_study(values(search=STEPS, overrides=given, profiles={"p": profile}), "p")
    assert study.run_config({"training.steps": 20}, 0, 0).evaluation.settings("kept").items == 16
    assert parse_study(study.to_dict()).overrides == study.overrides


def test_a_profile_may_leave_out_a_suite_that_the_study_has_settings_for() -> None:
    """The base may have them too. What a profile sets itself has an effect."""
    given = {"arms": ARM, "evaluation.suites": ["new", "kept", "drift"], "evaluation.replies": 9}
    profiles: dict[str, Any] = {"few": {"evaluation.suites": ["new", "kept"]}}
    profiles["idle"] = profiles["few"] | {"evaluation.reply_tokens": 9}
    study = parse_study(values(search=STEPS, overrides=given, profiles=profiles), "few")
    assert study.run_config({"training.steps": 20}, 0, 0).evaluation.suites == ("new", "kept")
    assert parse_study(study.to_dict(), begun=True).overrides == study.overrides  # to resume it
    with pytest.raises(ConfigError, match=r"'evaluation\.reply_tokens' has no effect: add drift to the suites of the"):
        parse_study(values(search=STEPS, overrides=given, profiles=profiles), "idle")
    given = {"arms": ARM, "evaluation.suites": ["new", "kept"], "evaluation.replies": 9}
    with pytest.raises(ConfigError, match=r"'evaluation\.replies' has no effect: add drift to the suites of the"):
        parse_study(values(search=STEPS, overrides=given, profiles={"p": {"evaluation.every": 5}}), "p")


@pytest.mark.parametrize(
    "posthoc",
    [
        [{"name": "soft", "alpha": 0.5}, {"name": "soft", "alpha": 0.7}],
        [{"alpha": 0.5}] * 2,
        [{"name": "a", "alpha": 1}],
    ],
)
def test_rows_of_a_report_have_names_of_their_own(posthoc: list[dict[str, Any]]) -> None:
    """By its name alone a row is found, so one of two would get the other's figures."""
    search = {"arm": {"kind": "arms", "arms": {"a": {"arms.0.method": "full"}}}}
    with pytest.raises(ConfigError, match=r"posthoc: two rows of the report would be called '(soft|a|a-wise-0\.5)'"):
        parse_study(values(search=search, posthoc=[{"arm": "a", "op": "wise"} | one for one in posthoc]))


def test_a_named_arm_changes_what_overrides_give_to_all() -> None:
    arms = {"a": {"arms.0.control": {"interpolation": "slerp"}}, "b": {}}
    study = parse_study(values(search={"arm": {"kind": "arms", "arms": arms}}, overrides={"arms": ARM, LAYERS: 4}))
    first, second = (study.run_config({"arm": arm}, 0, 0).arms[0].control for arm in arms)
    assert (first.interpolation, second.interpolation, second.layers) == ("slerp", "lerp", 4)


LM_EVAL: dict[str, Any] = {"evaluation.suites": ["new", "kept", {"lm_eval": {"kept": ["arc_easy"]}}]}


@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ({}, {"training.steps": 48}),
        ({}, {"training.steps": 2}),
        ({}, LM_EVAL),
        ({"warmup_steps": 3}, {"training.steps": 48} | LM_EVAL),
        ({}, {"training.steps": 48, "training.warmup_steps": 4, "evaluation.every": 3}),
    ],
)
def test_defaults_that_follow_from_other_fields_are_those_of_the_trial(
    own: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    """As with `run --set` of the same values, whether they are overrides or searched."""
    base = {"name": "b", "data": {"new": {"source": "facts"}}, "training": {"steps": 4, **own}, "arms": ARM}
    file = tmp_path / "b.yaml"
    file.write_text(yaml.safe_dump(base))
    study = parse_study(values(base=str(file), overrides=changed))
    arms = {"arm": {"kind": "arms", "arms": {"as is": {}, "changed": changed}}}
    searched = parse_study(values(base=str(file), overrides={}, search=arms))
    expected = load_config(file, changed)
    for trial in (study.run_config({RATE: 1e-3}, 0, 0), searched.run_config({"arm": "changed"}, 0, 0)):
        assert (trial.training, trial.evaluation) == (expected.training, expected.evaluation)
    assert searched.run_config({"arm": "as is"}, 0, 0).training == load_config(file).training
    assert parse_study(study.to_dict(), begun=True).identity() == study.identity()


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


def test_table5_facts_has_the_ways_of_table5_and_each_part_has_all_of_them() -> None:
    study, other = load_study("table5-facts"), load_study("table5")
    ways = study.search["arm"].points()
    assert ways == other.search["arm"].points()
    assert study.budget.trials == len(ways)
    cells = grid(study.search)
    for part in range(0, len(cells), len(ways)):
        assert [cell["arm"] for cell in cells[part : part + len(ways)]] == ways
        assert len({cell["rate"] for cell in cells[part : part + len(ways)]}) == 1


def test_a_study_that_an_earlier_version_began_is_read_though_a_field_has_no_effect() -> None:
    stored = toy_study().to_dict()
    stored["report"]["epsilon"] = 0.1
    assert stored_study(stored).report.epsilon == 0.1
    with pytest.raises(ConfigError, match=r"report\.epsilon has no effect without report\.law"):
        parse_study(stored)
