"""A run that grows: arms are added to it, and what it has stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError, RunError
from experiments.common.hashing import file_digest
from experiments.common.yaml_values import dump_yaml
from experiments.config import ExperimentConfig, load_config, parse_config, run_config
from experiments.methods.config import ArmConfig
from experiments.runs.growing import with_begun_arms
from experiments.runs.run import run_experiment, run_folder
from tests.helpers.small_run import small_config

FULL: dict[str, Any] = {"name": "full", "method": "full", "learning_rates": [1e-3]}
COPIES: dict[str, Any] = {"name": "copies", "method": "control", "learning_rates": [1e-2], "control": {"layers": 2}}


def growing(*arms: dict[str, Any], **changes: Any) -> ExperimentConfig:
    return parse_config({"name": "g", "grows": True, "arms": list(arms), **changes})


def kept(folder: Path, config: ExperimentConfig, *begun: str) -> None:
    """Leave a run's config, and the folders of the arms that it has begun."""
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_yaml(config.to_dict()), encoding="utf-8")
    for name in begun:
        (folder / "arms" / name).mkdir(parents=True)


def names(config: ExperimentConfig) -> list[str]:
    return [f"{arm.name}-{rate:g}" for arm in config.arms for rate in arm.learning_rates]


def test_the_folder_is_named_without_the_arms_only_if_the_run_grows() -> None:
    both, one = growing(FULL, COPIES), growing(FULL)
    assert both.digest() == one.digest() != growing(FULL, seed=1).digest()
    closed = [parse_config({"name": "g", "arms": arms}) for arms in ([FULL], [FULL, COPIES])]
    assert len({config.digest() for config in [*closed, both]}) == 3
    assert "grows" not in closed[0].to_dict()


def test_arms_that_began_come_first_and_stay(tmp_path: Path) -> None:
    kept(tmp_path / "run", growing(COPIES, FULL, FULL | {"name": "never"}), "copies-0.01", "full-0.001")
    other = FULL | {"name": "other"}
    assert names(with_begun_arms(growing(other), tmp_path / "run")) == ["copies-0.01", "full-0.001", "other-0.001"]
    more = with_begun_arms(growing(FULL | {"learning_rates": [1e-3, 1e-4]}), tmp_path / "run")
    assert names(more) == ["copies-0.01", "full-0.001", "full-0.0001"]


def test_a_rate_that_tables_print_like_one_that_began_is_refused(tmp_path: Path) -> None:
    """Tables and pictures know an arm by its printed name: the records of one would stand for both."""
    kept(tmp_path / "run", growing(FULL), "full-0.001")
    for rate in (1.0000001e-3, 1.00001e-3, 1.00004e-3):  # the first would have its folder
        with pytest.raises(ConfigError, match=r"arm 'full': each rate is trained once, but 0\.001 is there more than"):
            with_begun_arms(growing(FULL | {"learning_rates": [rate]}), tmp_path / "run")
    assert names(with_begun_arms(growing(FULL | {"learning_rates": [1.001e-3]}), tmp_path / "run"))[1:] == [
        "full-0.001001"
    ]


def test_an_arm_that_has_not_begun_can_change_or_go(tmp_path: Path) -> None:
    kept(tmp_path / "run", growing(FULL, COPIES), "full-0.001")
    changed = with_begun_arms(growing(COPIES | {"control": {"layers": 3}}), tmp_path / "run")
    assert [arm.control.layers for arm in changed.arms if arm.name == "copies"] == [3]
    assert names(with_begun_arms(growing(FULL), tmp_path / "run")) == ["full-0.001"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"control": {"layers": 3}},
            r"arm 'copies': control.layers=3, which began with 2 in run: give the changed arm",
        ),
        ({"method": "partial"}, "arm 'copies': method='partial', which began with 'control'"),
        ({"name": "Copies"}, "arm 'Copies': name='Copies', which began with 'copies'"),
        ({"replay": 0.1}, "arm 'copies': replay=0.1, which began with None"),
    ],
)
def test_an_arm_that_began_does_not_change(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    kept(tmp_path / "run", growing(COPIES), "copies-0.01")
    with pytest.raises(ConfigError, match=said):
        with_begun_arms(growing(COPIES | change), tmp_path / "run")


def test_runs_that_do_not_grow_and_new_ones_keep_their_config(tmp_path: Path) -> None:
    closed = load_config("quickstart")
    kept(tmp_path / "run", closed, "full-0.001")
    assert with_begun_arms(closed, tmp_path / "run") is closed
    new = growing(FULL)
    assert with_begun_arms(new, tmp_path / "nowhere") is new


def digests(folder: Path, arm: str) -> dict[str, str]:
    return {path.name: file_digest(path) for path in (folder / "arms" / arm).rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_added_arm_is_trained_in_the_same_run_and_the_old_one_is_not_touched(base: str, tmp_path: Path) -> None:
    first = small_config(base, name="g", grows=True, arms=[FULL])
    folder = run_experiment(first, tmp_path).folder
    before = digests(folder, "full-0.001")
    assert {"result.json", "items-2.jsonl", "items-4.jsonl"} <= before.keys()
    outcome = run_experiment(small_config(base, name="g", grows=True, arms=[COPIES]), tmp_path)
    assert outcome.folder == folder == run_folder(run_config(folder), tmp_path)
    assert [result.arm for result in outcome.results] == ["full", "copies"]
    assert not outcome.failed
    assert digests(folder, "full-0.001") == before
    alone = run_experiment(small_config(base, name="alone", arms=[COPIES]), tmp_path)
    same = [f / "arms" / "copies-0.01" / "items-4.jsonl" for f in (folder, alone.folder)]
    assert file_digest(same[0]) == file_digest(same[1])  # as if it had been there from the start


def test_settings_of_parts_are_compared_too(tmp_path: Path) -> None:
    arm = {"name": "p", "learning_rates": [1e-3], "train": "full", "loss": ["kl"]}
    kept(tmp_path / "run", growing(arm), "p-0.001")
    assert isinstance(with_begun_arms(growing(arm), tmp_path / "run").arms[0], ArmConfig)
    with pytest.raises(ConfigError, match="arm 'p': loss=None, which began with"):
        with_begun_arms(growing({k: v for k, v in arm.items() if k != "loss"}), tmp_path / "run")


def test_arms_that_another_process_adds_while_the_inputs_are_read(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config would be written over, and its arms would leave the report."""
    config = small_config(base, name="g", grows=True, arms=[FULL])
    folder = run_folder(config, tmp_path)

    def meanwhile(*_: Any) -> None:
        (folder / "arms" / "copies-0.01").mkdir(parents=True)
        other = small_config(base, name="g", grows=True, arms=[COPIES])
        (folder / "config.yaml").write_text(dump_yaml(other.to_dict()), encoding="utf-8")

    monkeypatch.setattr("experiments.runs.run.read_inputs", meanwhile)
    with pytest.raises(RunError, match=rf"arms were added to {folder.name} meanwhile: start the same command again"):
        run_experiment(config, tmp_path)
    assert [arm.name for arm in run_config(folder).arms] == ["copies"]
