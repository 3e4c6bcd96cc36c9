"""Choosing the arms of a run: what is added, changed, taken away, and what the run's config is then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ctrl.interpolation import INTERPOLATIONS
from experiments.common.errors import ConfigError, RunError
from experiments.common.yaml_values import dump_yaml
from experiments.desk.picker import Picker, options
from experiments.methods import METHODS
from tests.helpers.picked import picker
from tests.helpers.small_run import small_config


def begin(one: Picker, *arms: str) -> None:
    """Leave the folders of arms as a run does that has begun them."""
    one.folder.mkdir(parents=True, exist_ok=True)
    (one.folder / "config.yaml").write_text(dump_yaml(one.config.to_dict()), encoding="utf-8")
    for arm in arms:
        (one.folder / "arms" / arm).mkdir(parents=True)


def test_the_choices_are_those_of_the_config_classes() -> None:
    found = options()
    assert found["interpolation"] == tuple(INTERPOLATIONS)
    assert found["method"] == tuple(METHODS)
    assert found["structure"] == ("concat", "stack", "hybrid")
    assert found["alpha"] == ("fixed", "learned")


def test_an_arm_is_added_cloned_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = picker(tmp_path, own_arms=False)
    one.add("mse", layers=4, interpolation="dlerp", replay=None)
    said = yaml.safe_load(capsys.readouterr().out)
    control = {"layers": 4, "interpolation": "dlerp"}
    assert said == [{"name": "mse", "method": "control", "learning_rates": [1e-3], "control": control}]
    one.clone("mse", "cosine", divergence="cosine", rate=3e-4)
    (arm,) = yaml.safe_load(capsys.readouterr().out)
    assert arm == {
        "name": "cosine",
        "method": "control",
        "learning_rates": [3e-4],
        "control": control | {"divergence": "cosine"},
    }
    assert [arm["name"] for arm in yaml.safe_load(one.yaml)] == ["mse", "cosine"]
    one.remove("mse")
    assert [arm.name for arm in one.config.arms] == ["cosine"]
    assert one.config.grows


def test_a_clone_has_the_options_and_the_rates_of_its_arm(tmp_path: Path) -> None:
    arm = {"name": "lora", "method": "lora", "learning_rates": [1e-3, 1e-4], "options": {"rank": 4}, "replay": 0.0}
    parts = {"name": "parts", "learning_rates": [1e-3], "train": "full"}
    one = Picker(small_config("base", name="picked", arms=[arm, parts]), tmp_path)
    one.clone("lora", "same")
    one.clone("lora", "other", rate=1e-2)
    one.clone("lora", "tuned", method="full")
    same, other, tuned = (one.arms[name] for name in ("same", "other", "tuned"))
    assert same == {**arm, "name": "same"}
    assert (other["options"], other["learning_rates"]) == ({"rank": 4}, [1e-2])
    assert tuned == {"name": "tuned", "method": "full", "learning_rates": [1e-3, 1e-4], "replay": 0.0}
    with pytest.raises(ConfigError, match="arm 'parts' is written with train, loss and average"):
        one.clone("parts", "x")
    with pytest.raises(ConfigError, match="there is an arm 'same' already"):
        one.clone("lora", "same")


def test_all_arms_are_in_one_folder(tmp_path: Path) -> None:
    one = picker(tmp_path)
    before = one.folder
    one.add("copies")
    from experiments.runs.run import run_folder

    assert run_folder(one.config, tmp_path) == before == one.folder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "full"}, "there is an arm 'full' already: give another name"),
        ({"name": "x", "interpolation": "lerpp"}, "interpolation.*did you mean 'lerp'"),
        ({"name": "x", "divergance": "mse"}, "divergance.*did you mean 'divergence'"),
        ({"name": "x", "method": "fulll"}, "unknown method 'fulll': did you mean 'full'"),
        ({"name": "x", "rate": -1.0}, "learning_rates.0: Input should be greater than or equal to 0"),
        ({"name": "a/b"}, "arms.1.name"),
        ({"name": "x", "structure": "stack", "divergence": "cosine"}, "divergence has no effect: it needs structure"),
    ],
)
def test_what_cannot_be_is_said_before_anything_trains(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    one = picker(tmp_path)
    with pytest.raises(ConfigError, match=said):
        one.add(**given)
    assert list(one.arms) == ["full"]


def test_arms_that_began_are_there_again_and_stay(tmp_path: Path) -> None:
    first = picker(tmp_path)
    first.add("copies", rate=1e-5)
    first.add("later")
    begin(first, "copies-1e-05")
    again = picker(tmp_path, own_arms=False)
    assert list(again.arms) == ["copies"]
    assert again.states() == {"copies": "waiting"}
    with pytest.raises(ConfigError, match="arm 'copies' has begun, and stays in picked-"):
        again.remove("copies")
    with pytest.raises(ConfigError, match="no arm 'copi': did you mean 'copies'"):
        again.clone("copi", "x")
    again.add("new")
    assert again.states() == {"copies": "waiting", "new": "new"}


def test_it_shows_its_arms_as_a_table_and_as_yaml(tmp_path: Path) -> None:
    one = picker(tmp_path)
    one.add("copies", interpolation="slerp")
    page = one._repr_html_()
    assert "slerp" in page.split("<pre>")[0]
    assert yaml.safe_load(one.yaml)[1]["control"] == {"interpolation": "slerp"}


def test_without_arms_and_without_a_run_it_says_so(tmp_path: Path) -> None:
    one = picker(tmp_path, own_arms=False)
    with pytest.raises(ConfigError, match="there is no arm yet: add one first"):
        one.run()
    one.add("full", method="full")
    begin(one)
    with pytest.raises(RunError, match="does not run on this machine: there is nothing to stop"):
        one.stop()


def test_an_arm_may_have_the_name_of_one_of_the_config_that_is_not_used(tmp_path: Path) -> None:
    """A notebook runs again: its arm `full` was begun with another method than the config's arm of that name."""
    one = picker(tmp_path, own_arms=False)
    one.add("full", layers=2)
    begin(one, "full-0.001")
    again = picker(tmp_path, own_arms=False)
    assert again.arms == one.arms
    with pytest.raises(ConfigError, match=r"arm 'full': .* in .*: give the changed arm a name of its own"):
        picker(tmp_path)
