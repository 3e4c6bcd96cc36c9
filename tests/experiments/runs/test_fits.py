"""A run that cannot fit is refused before anything is loaded; one that may fit is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
from transformers import LlamaForCausalLM

from experiments.common.errors import RunError
from experiments.config import ExperimentConfig
from experiments.plan.accelerators import Device
from experiments.plan.plan import plan_run
from experiments.runs import experiment, fits
from experiments.runs.arm_training import arm_trainings
from experiments.runs.fits import check_fits, fitting_rows
from experiments.runs.run import run_experiment
from experiments.training.processes import ALONE
from tests.helpers.small_run import small_arm, small_config, tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_small_runs_are_not_even_traced(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "plan_run", None)
    check_fits(small_config(base))


def test_what_cannot_fit_is_refused_with_the_change(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "here", lambda: Device("a small device", 1e6))
    with pytest.raises(RunError, match=r"(?s)arm 'full': a step needs .* of a small device: .*--force starts it"):
        run_experiment(small_config(base), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_planned_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "here", lambda: Device("a small device", 1e6))
    check_fits(small_config(str(tmp_path)))  # no model there: loading says so


def fake_gpu(monkeypatch: pytest.MonkeyPatch, memory: float) -> None:
    device = Device("a GPU", memory)
    monkeypatch.setattr(fits, "gpu", lambda: device)
    monkeypatch.setattr(fits, "here", lambda: device)


def peak(config: ExperimentConfig) -> float:
    return plan_run(config, Device("a roomy device", 1e12)).arms[0].peak


def test_a_gpu_cuts_steps_into_what_fits_and_says_it(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_arm(base)
    two = config.model_copy(update={"training": config.training.model_copy(update={"micro_batch": 2})})
    assert fitting_rows(config, config.arms[0]) is None  # no GPU here
    fake_gpu(monkeypatch, 1.001 * peak(two) / fits.USED)
    assert fitting_rows(config, config.arms[0]) == (2, ANY)
    said = fitting_rows(config, config.arms[0])
    assert said is not None
    assert said[1].startswith("x: micro-batches of 2 rows, as the plan says they fit: all 4")
    check_fits(config)  # not refused
    assert fitting_rows(two, two.arms[0]) is None
    fake_gpu(monkeypatch, 1e12)
    assert fitting_rows(config, config.arms[0]) is None


def test_what_reads_whole_steps_is_not_cut(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(base, arms=[{"name": "x", "learning_rates": [1e-3], "train": "full", "loss": ["talr"]}])
    fake_gpu(monkeypatch, 0.9 * peak(config))
    assert fitting_rows(config, config.arms[0]) is None
    monkeypatch.setattr(fits, "SHORT", config.data.length)
    with pytest.raises(RunError, match=r"arm 'x': a step needs .* nothing here makes it fit"):  # a cut run is refused
        check_fits(config)


def test_models_that_average_each_micro_batch_are_not_cut(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_arm(base)
    assert fits.counts_tokens(config)
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    fake_gpu(monkeypatch, 0.9 * peak(config))
    assert fitting_rows(config, config.arms[0]) is None


def test_all_processes_train_an_arm_in_the_micro_batches_that_fit(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(base)
    prepared: Any = SimpleNamespace(
        config=config, folder=Path("a"), precision=None, data=SimpleNamespace(old_batches=None)
    )
    full, control = arm_trainings(prepared)
    lines: list[str] = []
    session: Any = SimpleNamespace(say=lines.append)
    found = {"full": (2, "full: micro-batches of 2 rows"), "control": None}
    monkeypatch.setattr(experiment, "fitting_rows", lambda config, arm, count: found[arm.name])
    experiment._cut_steps([full, control], session)
    assert lines == ["full: micro-batches of 2 rows"]
    assert [ALONE.cut(one.training) for one in (full, control)] == [(2, 2), (4, 1)]
    (follower, _) = arm_trainings(prepared)
    monkeypatch.setattr(follower, "train", lambda hooks: None)
    follower.follow(2)
    assert ALONE.cut(follower.training) == (2, 2)
    given = config.training.model_copy(update={"micro_batch": 1})
    prepared.config = config.model_copy(update={"training": given})
    assert ALONE.cut(follower.training) == (1, 4)
