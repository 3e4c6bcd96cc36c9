"""Operations on the arms of a run: measured as arms are, read the second time, refused in time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main as cli
from experiments.common.errors import ConfigError, MachineError, RunError
from experiments.posthoc.operations import (
    dial,
    merge,
    task_vectors,
    wise,
)
from experiments.posthoc.run import posthoc
from experiments.posthoc.tracked import measure_tracked
from experiments.records import read_records
from experiments.runs.run import run_experiment
from tests.helpers.small_run import small_config
from tests.helpers.toy_study import wait_for
from tests.helpers.trained_arms import arm

pytestmark = pytest.mark.slow  # six arms are trained for it


def test_results_are_measured_as_arms_are_and_read_the_second_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    results = posthoc(run, "full", 1e-2, "wise", [0.0, 1.0], say=said.append)
    assert [r.label for r in results] == ["full 0.01 wise 0", "full 0.01 wise 1"]
    for result, kl in zip(results, (0.0, None), strict=True):
        folder = run / "posthoc" / result.label.replace(" ", "-")
        records = read_records(folder / "items-2.jsonl")
        assert len(records) == len(read_records(run / "base" / "items.jsonl"))
        assert result.cost["added_parameters"] == 0
        if kl is not None:  # at alpha 0 it is the base
            assert result.scorecard["kl"].value == kl
            assert records == read_records(run / "base" / "items.jsonl")
    trained = json.loads((run / "arms" / "full-0.01" / "result.json").read_text())["scorecard"]
    assert results[1].scorecard["kl"].value == trained["kl"]["value"] > 0
    monkeypatch.setattr("experiments.posthoc.run.open_run", None)  # would fail if it were called
    assert posthoc(run, "full", 1e-2, "wise", [0.0, 1.0]) == results


def test_two_processes_measure_a_result_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two shells, or two machines that joined a study and both end it."""
    said, measured, measure = list[str](), list[str](), measure_tracked

    def slow(prepared: Any, tracker: Any, model: Any, result: Any, *rest: Any) -> None:
        measured.append(result.label)
        wait_for(lambda: any("another process" in line for line in said))
        measure(prepared, tracker, model, result, *rest)

    monkeypatch.setattr("experiments.posthoc.run.measure_tracked", slow)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(posthoc, run, "full", 1e-2, "wise", [0.5], say=said.append) for _ in range(2)]
        one, two = (done.result() for done in both)
    assert one == two
    assert measured == ["full 0.01 wise 0.5"]
    assert said.count("another process measures full-0.01-wise-0.5: waiting for it") == 1
    assert len(list((run / "posthoc" / "full-0.01-wise-0.5").glob("journal-*.jsonl"))) == 1


def test_the_command_prints_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["posthoc", str(run), "--arm", "control", "--lr", "0.01", "--op", "merge"]
    assert cli.main(options) == 0
    assert (run / "posthoc" / "control-0.01-merge" / "items-2.jsonl").is_file()
    assert "merge" in capsys.readouterr().out
    assert cli.main([*options[:-1], "wize"]) == 2
    assert "unknown operation 'wize': did you mean 'wise'" in capsys.readouterr().err
    assert cli.main(["posthoc", str(run), "--arm", "full", "--lr", "0.5", "--op", "wise", "--alphas", "0.5"]) == 1
    assert "has no finished arm full at 0.5; there are: control-0.01, dlerp-0.01, ewc-0.01" in capsys.readouterr().err


def test_a_fault_of_the_machine_leaves_no_result(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("experiments.posthoc.run.measure_tracked", no_memory)
        with pytest.raises(MachineError, match="a fault of the machine: MemoryError"):
            posthoc(run, "lora", 1e-2, "wise", [0.5])
    assert not (run / "posthoc" / "lora-0.01-wise-0.5" / "result.json").exists()


def test_what_cannot_be_done_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other weights than its base"):
        wise(arm(run, "stack"), 0.5)
    with pytest.raises(ConfigError, match=r"--alphas 0\.25 0\.5 0\.75"):
        wise(arm(run, "full"), None)
    with pytest.raises(ConfigError, match=r"'full-0\.01' is not expanded and has no adapter"):
        merge(arm(run, "full"), None)
    with pytest.raises(ConfigError, match="--alphas has no meaning"):
        merge(arm(run, "lora"), 0.5)
    for name, alpha in (("full", 0.5), ("control", None)):
        with pytest.raises(ConfigError, match="dial needs an expanded arm"):
            dial(arm(run, name), alpha)
    with pytest.raises(ConfigError, match="name the folders of the others"):
        task_vectors(arm(run, "full"), None)
    with pytest.raises(ConfigError, match="is not the folder of a trained arm"):
        task_vectors(arm(run, "full", others=[tmp_path]), 0.5)
    with pytest.raises(RunError, match="has no finished arm"):
        posthoc(tmp_path, "full", 1e-2, "wise", [0.5])


def test_methods_that_need_replay_say_so_before_anything_is_measured(base: str, tmp_path: Path) -> None:
    arms = [{"name": "kl", "method": "kl", "learning_rates": [1e-3], "options": {"tokens": "replayed"}}]
    with pytest.raises(ConfigError, match="arm 'kl': its options need replayed rows"):
        run_experiment(small_config(base, arms=arms), tmp_path / "mlruns", say=lambda text: None)
