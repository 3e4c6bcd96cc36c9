"""Several processes of one launch: the run of one, whatever the method; what one process finds, all know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments.common.errors import ConfigError, RunError
from experiments.common.files import read_json, write_json
from experiments.config import parse_config
from experiments.records import read_records
from experiments.runs.arm_training import own_errors_abort
from experiments.runs.checks import check_run
from experiments.runs.outcome import Outcome as RunOutcome
from experiments.runs.result_file import BASE_ITEMS
from experiments.runs.run import open_run, run_experiment, run_folder
from experiments.tracking.run import ParentRun
from experiments.training.channel import AbortLaunch
from experiments.training.checkpoints import LAUNCH, check_launch
from experiments.training.launcher import launch_kind
from experiments.training.processes import ALONE, LaunchMismatch, Processes
from experiments.training.trainer import ArmFailed
from tests.helpers import measure_in_two_processes as measuring
from tests.helpers import train_in_two_processes as two
from tests.helpers import wait_in_two_processes as waiting
from tests.helpers.engine import Killed, Outcome, train
from tests.helpers.launch import torchrun, two_processes
from tests.helpers.lm_eval_tasks import write_tasks
from tests.helpers.small_run import small_config, small_values, tiny_base
from tests.helpers.tiny_llama import tiny

SCRIPT = Path(two.__file__)
NO_DEEPSPEED = pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed")
MODES = ("ddp", "fsdp", pytest.param("zero", marks=NO_DEEPSPEED))
LOGGED = ("loss", "lm_loss", "weighted_lm_loss", "divergence", "penalty", "grad_norm", "tokens_seen")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Outcome]:
    """What one process trains by a method. It is the same for all modes."""
    folder = tmp_path_factory.mktemp("alone")
    return functools.cache(
        lambda name, precision: train(
            two.arm(name), folder / name / precision, precision=precision, steps=two.steps(name)
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_as_one_does(mode: str, alone: Callable[[str, str], Outcome], tmp_path: Path) -> None:
    """The same losses and weights, for all methods; some are killed on the way and resumed."""
    if mode == "ddp":
        with pytest.raises(Killed):
            train(two.arm(two.OTHERS), tmp_path / two.BY_ONE, 4)
    done = two_processes(SCRIPT, mode, "methods", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for method in two.methods(mode):
        one = alone(method, two.precision(method))
        logs, cost, weights, measured = torch.load(tmp_path / f"{method}.pt", weights_only=False)
        assert cost["tokens"] == one.cost["tokens"]
        assert cost["trainable_parameters"] == one.cost["trainable_parameters"]
        resumed = [step for step in one.logs if step not in logs]
        assert resumed == ([1, 2] if method in two.RESUMED else [])
        for step, found in logs.items():
            expected = one.logs[step]
            assert found.keys() == expected.keys()
            for name in LOGGED:
                if name in expected:
                    far = 2e-2 if method.endswith("bf16") else 2e-3
                    assert found[name] == pytest.approx(expected[name], rel=far), (method, step, name)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, one.weights[name], rtol=1e-2, atol=2e-3, msg=f"{method} {name}")
        for step, logits in measured.items():
            torch.testing.assert_close(logits.float(), one.measured[step].float(), rtol=1e-2, atol=1e-2)

    if mode == "ddp":  # a checkpoint serves any number of processes
        one, last = alone(two.OTHERS, "fp32"), train(two.arm(two.OTHERS), tmp_path / two.BY_TWO)
        for logs, weights in (torch.load(tmp_path / f"{two.BY_ONE}.pt", weights_only=False), (last.logs, last.weights)):
            assert min(logs) == 3  # not from the start
            assert all(logs[step]["loss"] == pytest.approx(one.logs[step]["loss"], rel=2e-3) for step in logs)
            for name, weight in weights.items():
                torch.testing.assert_close(weight, one.weights[name], rtol=1e-2, atol=2e-3)


@pytest.fixture(scope="module")
def run_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], RunOutcome]:
    """The fields of a run in which an arm breaks, and the run of one process."""
    folder = tmp_path_factory.mktemp("run")
    values = small_values(tiny_base(folder / "base"))
    broken = {"name": "broken", "method": "full", "learning_rates": [1000.0]}
    values["arms"] = [values["arms"][0], broken, values["arms"][1]]
    values["evaluation"] |= {"suites": ["new", "kept", "drift", "text", "alignment"], "every": 4}
    return values, run_experiment(parse_config(values), folder / "one")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_experiment_of_two_processes_is_that_of_one(
    mode: str, run_alone: tuple[dict[str, Any], RunOutcome], tmp_path: Path
) -> None:
    """The records, the figures and the files; an arm that breaks is noted, and both go on to the next."""
    values, one = run_alone
    config = parse_config(values)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    done = two_processes(SCRIPT, mode, "run", tmp_path / "small.yaml", "--root", tmp_path / "two")
    assert done.returncode == 1
    assert done.stdout.count("MLflow UI:") == 1
    assert "3 arms, 2 processes" in done.stdout
    folder = run_folder(config, tmp_path / "two")
    assert files(folder) == files(one.folder)
    assert read_records(folder / BASE_ITEMS) == read_records(one.folder / BASE_ITEMS)  # by both processes
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
    again = run_experiment(config, tmp_path / "two")  # by one process
    assert [result.status for result in again.results] == [result.status for result in one.results]


@pytest.mark.slow
def test_two_processes_share_the_items_and_find_what_one_finds(tmp_path: Path) -> None:
    """All suites, bit for bit: with whole models, and in shards, where who has finished passes along with the other."""
    tiny_base(tmp_path / "base")
    write_tasks(tmp_path / "tasks")
    model, evaluation = measuring.prepared(tmp_path)
    passes = measuring.counted(model)
    records = evaluation.evaluate(model, measuring.FP32, progress=False)
    assert {record.suite for record in records} == set(measuring.SUITES)
    assert {record.task for record in records} > {"sums", "colours"}  # of lm_eval
    for mode in ("whole", "shards"):
        done = two_processes(Path(measuring.__file__), mode, tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert [read_records(tmp_path / f"{mode}-{index}.jsonl") for index in range(2)] == [records] * 2
        made = [int((tmp_path / f"{mode}-{index}.txt").read_text()) for index in range(2)]
        if mode == "whole":  # nearly nothing is done twice: how a model reads is looked at by both
            assert 0 < min(made) < max(made) < len(passes) <= sum(made) < 1.1 * len(passes)
        else:
            assert made[0] == made[1] < len(passes)


@pytest.mark.slow
def test_a_slow_process_is_waited_for_and_a_dead_one_is_named(tmp_path: Path) -> None:
    """Process 0 fails, then evaluates twice, each time for twice torch's own timeout, then hangs, then dies."""
    done = torchrun(Path(waiting.__file__), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_json(tmp_path / "waited.json")
    assert found["fails"] == "process 0 failed: OSError: no space left"
    assert found["slow"] > 4 * waiting.TENSOR_TIMEOUT.total_seconds()
    assert "process 1 waits for 'report' from process 0, which has shown no sign of work for 0:00:02" in found["hangs"]
    assert "process 1 waits for 'evaluation at step 2' from process 0" in found["dies"]


def files(folder: Path) -> set[str]:
    """The files of a run, but for names that depend on MLflow's runs, or on the launch that wrote a checkpoint."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(path) for path in paths if "journal" not in str(path) and "checkpoints" not in path.parts}


def test_a_batch_is_shared_out_evenly() -> None:
    assert [Processes(count).per_process(12) for count in (1, 2, 3)] == [12, 6, 4]
    with pytest.raises(ConfigError, match=r"training\.batch_size=12 does not divide by the 5 processes"):
        Processes(5).per_process(12)
    assert ALONE.broadcast("letter", "x") == "x"
    assert ALONE.all_gather("number", 1) == [1]
    ALONE.send("message")  # to nobody
    with pytest.raises(RuntimeError, match="a single process has nobody to receive messages from"):
        ALONE.receive(str)


def test_one_process_alone_meets_its_own_errors() -> None:
    def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ALONE.on_main("work", work)


@pytest.mark.parametrize(
    ("method", "launcher", "reason"),
    [
        ("l2sp", "FSDP", r"arm 'far': method l2sp adds a function of all weights .* in shards"),
        ("ewc", "FSDP", r"arm 'far': method ewc adds a function of all weights .* in shards"),
        ("mer", "DEEPSPEED", r"arm 'far': method mer sets weights between steps, .* copies of its own"),
    ],
)
def test_what_a_launcher_cannot_do_is_refused(
    method: str, launcher: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = small_config("x", arms=[{"name": "far", "method": method, "learning_rates": [1e-3]}])
    check_run(config, tiny())
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_run(config, tiny())
    monkeypatch.setenv(f"ACCELERATE_USE_{launcher}", "true")
    with pytest.raises(ConfigError, match=reason):
        check_run(config, tiny())
    refused = {"FSDP": "fsdp", "DEEPSPEED": "zero"}[launcher]
    assert method not in two.methods(refused)  # what is refused is not compared, all else is


def test_a_checkpoint_of_another_kind_of_launch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_launch(tmp_path)  # of an earlier version of this project, which had one process
    write_json(tmp_path / LAUNCH, {"kind": launch_kind()})
    check_launch(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(LaunchMismatch, match=r"written by a launch of kind 'whole', and this one is 'fsdp' .* go on"):
        check_launch(tmp_path)


@pytest.mark.parametrize(
    ("count", "error", "raised", "reason"),
    [
        (1, torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError, "no memory"),  # noted as the arm's reason
        (2, torch.OutOfMemoryError("no memory"), AbortLaunch, r"full-1: out of GPU memory: set training\.micro_batch"),
        (2, ArmFailed("loss became nan"), ArmFailed, "loss became nan"),  # all processes meet it
        (2, LaunchMismatch("written by another"), LaunchMismatch, "written by another"),
    ],
)
def test_an_error_that_others_cannot_know_ends_the_launch(
    count: int, error: Exception, raised: type[Exception], reason: str
) -> None:
    with pytest.raises(raised, match=reason), own_errors_abort("full-1", Processes(count)):
        raise error


def test_bf16_is_refused_under_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    check_run(small_config("x"), tiny())
    with pytest.raises(ConfigError, match=r"precision 'bf16' means bf16 here, .* set precision to fp32, or use"):
        check_run(small_config("x", precision="bf16"), tiny())


@NO_DEEPSPEED
def test_zero_stage_3_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ConfigError, match="zero_stage=3 is not supported: take stage 1 or 2, or accelerate launch"):
        run_experiment(small_config("x"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_made_for_one_process_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="WORLD_SIZE=2: a study runs in one process on one device"):
        run_experiment(small_config("x"), tmp_path, parent=ParentRun("a trial's", "#0", joins=True))
    with pytest.raises(RunError, match="WORLD_SIZE=2: an observer runs in one process"):
        run_experiment(small_config("x"), tmp_path, observe=lambda *args: None)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_values("x")))
    with pytest.raises(RunError, match="WORLD_SIZE=2: measuring more models runs in one process"):
        open_run(tmp_path)
