"""Several processes of one launch: the run of one, whatever the method; what one process finds, all know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments.checks import check_layers
from experiments.config import ConfigError
from experiments.methods import METHODS
from experiments.processes import ALONE, Processes
from experiments.records import read_json, read_records
from experiments.run import RunError, open_run, run_experiment, run_folder
from tests.ctrl.test_trainer import tiny
from tests.experiments import two
from tests.experiments.engine import train
from tests.experiments.small import small_config, small_values, tiny_base

ROOT = Path(__file__).parents[2]
LOGGED = ("loss", "lm_loss", "divergence", "penalty", "grad_norm", "tokens_seen")


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes of two.py, as torchrun starts them."""
    command = [str(ROOT / "tests" / "experiments" / "two.py"), *map(str, arguments)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*torchrun, *command], check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(mode: str, tmp_path: Path) -> None:
    """The same losses and weights, for all methods; control, ema and mer are killed on the way and resumed."""
    done = launch(mode, "methods", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    methods = [name for name, cls in METHODS.items() if mode == "ddp" or not cls.reads_weights]
    assert len(methods) == len(METHODS) - (0 if mode == "ddp" else 2)
    for method in methods:
        one = train(two.arm(method), tmp_path / "one" / method)
        logs, cost, weights, measured = torch.load(tmp_path / f"{method}.pt", weights_only=False)
        assert cost["tokens"] == one.cost["tokens"]
        assert cost["trainable_parameters"] == one.cost["trainable_parameters"]
        resumed = [step for step in one.logs if step not in logs]
        assert resumed == ([1, 2] if method in ("control", "ema", "mer") else [])
        for step, found in logs.items():
            expected = one.logs[step]
            assert found.keys() == expected.keys()
            for name in LOGGED:
                if name in expected:
                    assert found[name] == pytest.approx(expected[name], rel=2e-3), (method, step, name)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, one.weights[name], rtol=1e-2, atol=2e-3, msg=f"{method} {name}")
        for step, logits in measured.items():
            torch.testing.assert_close(logits, one.measured[step], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_an_experiment_of_two_processes_is_that_of_one(mode: str, tmp_path: Path) -> None:
    """The records, the figures and the files; an arm that breaks is noted, and both go on to the next."""
    values = small_values(tiny_base(tmp_path / "base"))
    broken = {"name": "broken", "method": "full", "learning_rates": [1e30]}
    values["arms"] = [values["arms"][0], broken, values["arms"][1]]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    done = launch(mode, "run", tmp_path / "small.yaml", "--root", tmp_path / "two")
    assert done.returncode == 1
    assert done.stdout.count("MLflow UI:") == 1
    assert "3 arms, 2 processes" in done.stdout
    one = run_experiment(small_config(values["base_model"], arms=values["arms"]), tmp_path / "one")
    folder = run_folder(small_config(values["base_model"], arms=values["arms"]), tmp_path / "two")
    assert files(folder) == files(one.folder)
    for result in one.results:
        arm = f"arms/{result.arm}-{result.learning_rate:g}"
        other = read_json(folder / arm / "result.json")
        assert other["status"] == result.status == ("failed" if result.arm == "broken" else "finished")
        if result.status == "failed":
            assert "lower the learning rate" in other["reason"]
            continue
        for name, figure in result.scorecard.items():
            assert other["scorecard"][name]["value"] == pytest.approx(figure.value, abs=1e-3, nan_ok=True), name
        for record, expected in zip(
            *(read_records(f / arm / "items-4.jsonl") for f in (folder, one.folder)), strict=True
        ):
            assert (record.item, record.correct, record.choice) == (expected.item, expected.correct, expected.choice)
    again = run_experiment(small_config(values["base_model"], arms=values["arms"]), tmp_path / "two")  # by one process
    assert [result.status for result in again.results] == [result.status for result in one.results]


def files(folder: Path) -> set[str]:
    """The files of a run, but for the journals' names, which are those of MLflow's runs."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "journal" not in str(p)}


def test_a_batch_is_shared_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [Processes(count).part(12) for count in (1, 2, 3)] == [12, 6, 4]
    with pytest.raises(ConfigError, match=r"training\.batch_size=12 does not divide by the 5 processes"):
        Processes(5).part(12)
    assert ALONE.told("x") == "x"
    assert ALONE.gathered(1) == [1]


def test_one_process_alone_meets_its_own_errors() -> None:
    def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ALONE.lead(work)


def test_penalties_on_weights_are_refused_where_these_are_in_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = small_config("x", arms=[{"name": "far", "method": "l2sp", "learning_rates": [1e-3]}])
    check_layers(config, tiny())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_layers(config, tiny())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"arm 'far': method l2sp adds a function of all weights .* in shards"):
        check_layers(config, tiny())


def test_deepspeed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="DeepSpeed is not supported: accelerate launch --use_fsdp"):
        run_experiment(small_config("x"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_made_for_one_process_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="WORLD_SIZE=2: a study runs in one process on one device"):
        run_experiment(small_config("x"), tmp_path, parent="a trial's run")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_values("x")))
    with pytest.raises(RunError, match="WORLD_SIZE=2: measuring more models runs in one process"):
        open_run(tmp_path)
