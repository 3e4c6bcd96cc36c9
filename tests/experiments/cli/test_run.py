"""`run` reads values of --set as YAML, names wrong input, and makes nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import main as cli
from experiments.cli.run import overrides, split_arm
from experiments.common.errors import ConfigError
from experiments.common.paths import default_root
from tests.helpers.small_run import small_values


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("control-0.0003", ("control", 3e-4)),
        ("kl-lora-1e-05", ("kl-lora", 1e-5)),
        ("lerp8-3e-4", ("lerp8", 3e-4)),
        ("layers-8-1", ("layers-8", 1.0)),
    ],
)
def test_an_arm_is_its_name_and_its_learning_rate(text: str, arm: tuple[str, float]) -> None:
    assert split_arm(text) == arm


def test_an_arm_without_a_learning_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'control' has no learning rate: .* for example control-0\.0003"):
        split_arm("control")


def test_values_of_set_are_yaml() -> None:
    given = ["training.steps=20", "name=x", "data.old={source: self}", "arms.0.learning_rates=[1.0e-3]"]
    expected = {
        "training.steps": 20,
        "name": "x",
        "data.old": {"source": "self"},
        "arms.0.learning_rates": [1e-3],
    }
    assert overrides(given) == expected


@pytest.mark.parametrize(
    ("pair", "match"),
    [
        ("data.system=Answer in #1", r"'#1' is a comment in YAML; put the text in quotes: '\"Answer in #1\"'"),
        ("data.system=#tag", r"'#tag' is a comment"),
        ("data.system=[a] # b", r"'# b' is a comment"),
        ("training.micro_batch=", r"--set training\.micro_batch= is empty: give a value, or null"),
        ("training.micro_batch= ", r"is empty"),
    ],
)
def test_no_part_of_a_value_is_lost(pair: str, match: str) -> None:
    """YAML cuts a text at ` #`, and reads nothing as null: an unset variable of the shell would choose a default."""
    with pytest.raises(ConfigError, match=match):
        overrides([pair])
    assert overrides(["a='in #1'", "b=C#", "c=null", "d={x: 1} ", "e=x=y"]) == {
        "a": "in #1", "b": "C#", "c": None, "d": {"x": 1}, "e": "x=y",
    }  # fmt: skip


@pytest.mark.parametrize("later", ["data.new=x", "data={}", "data.new=[]"])
def test_a_key_is_set_once(later: str) -> None:
    with pytest.raises(ConfigError, match=r"--set data\S* replaces --set data\.new: leave one out"):
        overrides(["data.new={name: chain_sum}", later])
    assert overrides(["data=null", "data.new=x"]) == {"data": None, "data.new": "x"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainig": {}}, "trainig: unknown key; did you mean 'training'"),
        ({"training": {"stps": 3}}, "training.stps: unknown key; did you mean 'steps'"),
        ({"arms": []}, "at least 1 item"),
        ({"base_model": "no/such-model"}, "base_model 'no/such-model' could not be loaded"),
        ({"base_model": __file__}, "could not be loaded"),
        ({"data": {"new": {"name": "chain_sums"}}}, "did you mean 'chain_sum'"),
        ({"arms": [{"name": "x", "method": "ful", "learning_rates": [1]}]}, "did you mean 'full'"),
        (
            {"arms": [{"name": "x", "method": "control", "learning_rates": [1], "control": {"layers": 9}}]},
            "arm 'x': layers=9: the model has 3 layers, give a count in 1..3",
        ),
        (
            {"arms": [{"name": "x", "method": "control", "learning_rates": [1], "control": {"interpolation": "lrp"}}]},
            "unknown interpolation 'lrp': did you mean 'lerp'",
        ),
    ],
)
def test_wrong_input_is_named_and_nothing_is_made(
    base: str, tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_values(base, **change)))
    code = cli.main(["run", str(tmp_path / "config.yaml"), "--root", str(tmp_path / "mlruns")])
    assert code in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path / "nothing.yaml")]) == 2
    assert "no config file" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("a: [1")
    assert cli.main(["run", str(tmp_path / "broken.yaml")]) == 2
    assert "is not YAML" in capsys.readouterr().err
    (tmp_path / "list.yaml").write_text("- 1")
    assert cli.main(["run", str(tmp_path / "list.yaml")]) == 2
    assert "must contain a mapping" in capsys.readouterr().err
    assert cli.main(["run", "quickstart", "--set", "training.steps"]) == 2
    assert "--set takes KEY=VALUE" in capsys.readouterr().err


def test_a_run_is_synced_with_the_store_of_its_own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder it would go to another store, which is made for it, and its own would never get it."""
    monkeypatch.chdir(tmp_path)
    own, other, bare = (tmp_path / name / "runs" / "demo-0123abcd" for name in ("own", "other", "copied"))
    for folder in (own, other, bare):
        folder.mkdir(parents=True)
    for folder in (own, other):
        (folder.parents[1] / "mlflow.db").touch()
    used: list[Path] = []
    monkeypatch.setattr("experiments.tracking.sync.sync", lambda folders, root: used.append(root) or {})
    for words in ([own], [own / "arms" / "full-0.1"], [own.parents[1]], [bare], [own, "--root", "mlruns"]):
        assert cli.main(["sync", *map(str, words)]) == 0
    assert used == [*[own.parents[1]] * 3, default_root(), Path("mlruns")]
    assert cli.main(["sync", str(own), str(other)]) == 2
