"""The table of trials in every format, and the status that is printed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.common.errors import ConfigError
from experiments.records import ArmResult
from experiments.studies import trial
from experiments.studies.report.table import export, frame, progress_text, status_text
from experiments.studies.report.write import _setup
from experiments.studies.trial import run_trial
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.planted_study import TABLE5, synthetic_store
from tests.helpers.toy_study import (
    RANGE,
    NoTracker,
    logging_run,
    open_store,
    quiet,
    value,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_mixed_picks_are_exported_to_every_format(tmp_path: Path) -> None:
    layers = {"kind": "choice", "path": "arms.0.control.layers", "values": [1, [0, 2]]}
    store = open_store(tmp_path, search={"layers": layers})
    store.work(lambda number, picks, report: TrialOutcome([1.0]), quiet)
    for ending in (".csv", ".parquet", ".json"):
        assert export(store, tmp_path / f"out{ending}") == 2
    assert set(pd.read_parquet(tmp_path / "out.parquet")["pick/layers"]) == {"1", "[0, 2]"}


def test_files_of_trials_without_picks_or_with_what_is_no_number(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]}, report={})
    broken = store.trials()[0]
    broken.runs[0]["result"]["scorecard"]["kl"]["value"] = float("nan")
    mixed = replace(broken, number=7, picks={**broken.picks, "rate": "low"})
    store.trials = lambda: [broken, mixed, replace(broken, number=8, picks={})]  # type: ignore[method-assign]
    export(store, tmp_path / "t.json")
    read = json.loads((tmp_path / "t.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read["trials"][0]["runs"][0]["result"]["scorecard"]["kl"]["value"] is None
    for _ in range(2):  # an earlier export is replaced
        export(store, tmp_path / "t.parquet")
    assert [file.name for file in tmp_path.glob("*.parquet*")] == ["t.parquet"]
    assert pd.read_parquet(tmp_path / "t.parquet")["pick/rate"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.parquet"])
def test_an_export_replaces_earlier_exports_and_no_other_file(name: str, tmp_path: Path) -> None:
    store, path = open_store(tmp_path), tmp_path / name
    for _ in range(2):  # also one without trials
        export(store, path)
    store.work(lambda number, picks, report: TrialOutcome([1.0]), quiet)
    for _ in range(2):
        assert export(store, path)
    pd.DataFrame({"trial": [1], "mine": [2]}).to_parquet(tmp_path / "of-others.parquet")
    for content in (b"my notes", b"trial,mine\n1,2\n", b'{"mine": 1}', (tmp_path / "of-others.parquet").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{name} is there and is no export of a study: choose another name"):
            export(store, path)
        assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.parquet"])
def test_a_full_disk_leaves_the_export_that_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    store = open_store(tmp_path)
    export(store, tmp_path / name)
    old = (tmp_path / name).read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export(store, tmp_path / name)
    assert (tmp_path / name).read_bytes() == old


def test_status_counts_what_keeps_the_constraints(tmp_path: Path) -> None:
    store = open_store(tmp_path, constraints=[{"figure": "kl", "max": 0.5}])
    run = logging_run(tmp_path / "log")
    store.work(lambda n, p, r: replace(run(n, p, r), constraints={"kl <= 0.5": value(p) - 1}), quiet)
    assert "within the constraints: 2 of 6 complete" in status_text(store, tmp_path)


def test_a_trial_without_picks_is_shown_and_left_out_of_the_setup(tmp_path: Path) -> None:
    """It was asked for, and its worker has not drawn its picks yet."""
    store = open_store(tmp_path, search=RANGE, sampler="random", budget={"trials": 3})
    with pytest.warns(UserWarning, match="Heartbeat"):
        store.study.ask()
    assert _setup(store).endswith("1 seed per trial, sampler random")
    assert "running: trial 0 ()" in status_text(store, tmp_path)
    assert list(frame(store).state) == ["running"]


def test_a_study_that_runs_says_how_far_it_is(tmp_path: Path) -> None:
    store, said = open_store(tmp_path), list[str]()

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        said.append(progress_text(store))
        return TrialOutcome([value(picks)])

    store.work(run, quiet)
    assert said[0] == "0 of 6 trials done"
    best = "best so far #2 (training.steps=2, rate=0.1): gain 1.9"
    assert re.fullmatch(rf"3 of 6 trials done; {re.escape(best)}; about \d+ s left", said[3]), said[3]
    assert progress_text(store).startswith("6 of 6 trials done; best so far #4 (training.steps=3, rate=0.1): gain 2.9")
    objectives = [{"figure": "gain", "direction": "maximize"}, {"figure": "kl", "direction": "minimize"}]
    folder = tmp_path / "two"
    folder.mkdir()
    two = open_store(folder, objectives=objectives)
    two.work(lambda number, picks, report: TrialOutcome([value(picks), value(picks)]), quiet)
    assert "; front of 6: #0, #1, #2, #3, #4, #5" in progress_text(two)


def test_what_a_failed_trial_measured_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second seed fails."""
    results = [ArmResult("arm", "full", 1e-3, "finished"), ArmResult("arm", "full", 1e-3, "failed", "loss became nan")]

    class Done:
        folder = tmp_path / "runs" / "r"

        def __init__(self) -> None:
            self.results = [results.pop(0)]

    monkeypatch.setattr("experiments.runs.run.run_experiment", lambda *_, **__: Done())
    monkeypatch.setattr(trial, "Tracker", NoTracker)
    store = open_store(tmp_path, seeds=[0, 1], search=RANGE, sampler="random", budget={"trials": 1})
    store.work(lambda number, picks, report: run_trial(store.config, number, picks, tmp_path, None), print)
    [failed] = store.trials()
    assert (failed.state, failed.reason) == ("failed", "seed 1: loss became nan")
    assert [(r["seed"], r["result"]["status"]) for r in failed.runs] == [(0, "finished"), (1, "failed")]
    table = frame(store)
    assert list(table.seed) == [0, 1]
    assert list(table.reason) == ["seed 1: loss became nan"] * 2
