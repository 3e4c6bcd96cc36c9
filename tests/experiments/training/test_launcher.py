"""What a launcher asks for is known, and refused where a run would compute something else than its settings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.runs.run import run_experiment
from experiments.training.launcher import OVERRIDES, check_launcher, is_main_process
from tests.helpers.small_run import small_config


def test_a_rank_without_a_launch_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")  # as some job schedulers set it
    assert is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_main_process()


def test_the_older_fsdp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's default, and it hides its shards: one process would evaluate while the others do not gather."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="only its second version is supported, add --fsdp_version 2"):
        run_experiment(small_config("x"), tmp_path)


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("value", ["no", "NO", "false", ""])
def test_what_accelerate_launch_sets_by_default_is_accepted(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    check_launcher()
    monkeypatch.setenv(name, "INDUCTOR")
    with pytest.raises(ConfigError, match=f"{name}=INDUCTOR: .* unset {name}$"):
        check_launcher()
