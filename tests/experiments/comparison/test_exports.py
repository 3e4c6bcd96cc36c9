"""Exports of a study as runs to compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.cli.main import main
from experiments.common.errors import CompareError
from experiments.comparison.compare import compare
from experiments.comparison.inputs import read_runs
from experiments.comparison.report import format_comparison
from experiments.records import ArmResult, Estimate
from experiments.reporting.tables import table_csv


def exported(path: Path, trials: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Path:
    """Write the trials of a study, in JSON nested, in tables as rows."""
    if path.suffix == ".json":
        path.write_text(json.dumps({"trials": trials}), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".json"])
def test_a_study_export_is_read_with_and_without_its_run_folders(run: Path, tmp_path: Path, ending: str) -> None:
    card = {"gain": Estimate(0.4, 0.3, 0.5), "retention": Estimate(0.9)}
    rows, trials = [], []
    for number, (folder, seed) in enumerate(((str(run), 0), ("nowhere", 1))):
        flat = {
            f"{n}{end}": v for n, e in card.items() for end, v in (("", e.value), ("_low", e.low), ("_high", e.high))
        }
        rows.append({"trial": number, "seed": seed, "folder": folder, "arm": "full", "learning_rate": 0.001, **flat})
        result = ArmResult("full", "full", 0.001, "finished", scorecard=card).to_dict()
        trials.append({"number": number, "runs": [{"seed": seed, "folder": folder, "result": result}]})
    path = exported(tmp_path / f"study{ending}", trials, rows)
    here, gone = read_runs([str(path)])
    assert (here.name, gone.name) == ("trial 0 full-0.001 seed 0", "trial 1 full-0.001 seed 1")
    assert len(here.after) == 600
    assert dict(gone.figures) == card
    notes = compare([here, gone], draws=200).notes
    assert any("trial 1 full-0.001 seed 1 has no item records here" in note for note in notes)
    (run / "config.yaml").write_text("no: config\n")  # of another version: no stream is known, all else is
    with pytest.raises(CompareError, match=r"--base .*nowhere.* has no item records here"):
        read_runs([str(run)], str(_only(path, rows[1], trials[1], tmp_path / f"nowhere{ending}")))


@pytest.mark.parametrize("gain", [0.4, 0.1])
def test_an_export_does_not_take_the_records_of_a_namesake(run: Path, tmp_path: Path, gain: float) -> None:
    """The same config on two machines has one name: its run here may have seen other data."""
    result = ArmResult("full", "full", 0.001, "finished", scorecard={"gain": Estimate(0.4)}).to_dict()
    path = tmp_path / "study.json"
    path.write_text(
        json.dumps({"trials": [{"number": 0, "runs": [{"seed": 0, "folder": str(run), "result": result}]}]})
    )
    file = run / "arms" / "full-0.001" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scorecard": {"gain": {"value": gain}}}))
    if gain == 0.4:
        assert len(read_runs([str(path)])[0].after) == 600
        return
    with pytest.raises(CompareError, match=r"study\.json, .*: gain is 0\.4, but 0\.1 in .*which has the same name"):
        read_runs([str(path)])


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_trials_of_an_export_that_repeat_another_or_did_not_finish(tmp_path: Path, ending: str) -> None:
    """The first are its runs again, which would enlarge Holm's family; of the others the half figures are said."""
    card = {"gain": Estimate(0.4, 0.3, 0.5)}
    trials = []
    for number, (state, reason, repeats) in enumerate(
        [("complete", "", None), ("complete", "", 0), ("pruned", "kl was 0.9", None)]
    ):
        status = "finished" if state == "complete" else state
        result = ArmResult("full", "full", 0.001, status, reason or None, scorecard=card)
        runs = [{"seed": 0, "folder": "nowhere", "result": result.to_dict()}]
        trials.append({"number": number, "state": state, "reason": reason, "repeats": repeats, "runs": runs})
    path = tmp_path / f"study{ending}"
    if ending == ".json":
        path.write_text(json.dumps({"trials": trials}), encoding="utf-8")
    else:
        same = {"seed": 0, "folder": "nowhere", "arm": "full", "learning_rate": 1e-3}
        figures = {"gain": 0.4, "gain_low": 0.3, "gain_high": 0.5}
        rows = [{"trial": t.pop("number"), **{k: v for k, v in t.items() if k != "runs"}, **same, **figures}
                for t in trials]  # fmt: skip
        pd.DataFrame(rows).to_csv(path, index=False)
    first, other = read_runs([str(path)])
    assert [first.name, other.name] == ["trial 0 full-0.001 seed 0", "trial 2 full-0.001 seed 0"]
    assert (first.fault, other.fault) == (None, "pruned: kl was 0.9")
    assert any("trial 2 full-0.001 seed 0: pruned" in note for note in compare([first, other], draws=200).notes)


def _only(path: Path, row: dict[str, object], trial: dict[str, object], to: Path) -> Path:
    """An export of one row whose run folder is on another machine."""
    if path.suffix == ".json":
        to.write_text(json.dumps({"trials": [trial]}), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame([row]).to_csv(to, index=False)
    else:
        pd.DataFrame([row]).to_parquet(to, index=False)
    return to


def test_the_table_of_a_run_has_arms_of_any_name_and_says_what_failed(tmp_path: Path) -> None:
    """Pandas reads NA as nothing and 007 as 7, and an arm may be called as the base's row is."""
    card = {"gain": Estimate(0.4, 0.3, 0.5)}
    results = [ArmResult(name, "full", 0.001, "finished", scorecard=card) for name in ("base", "NA", "007")]
    results.append(ArmResult("full", "full", 0.001, "failed", "it broke", scorecard=card))
    (tmp_path / "table.csv").write_text(table_csv(card, results))
    found = {run.name: run.fault for run in read_runs([str(tmp_path / "table.csv")])}
    assert found == {"base-0.001": None, "NA-0.001": None, "007-0.001": None, "full-0.001": "failed: it broke"}


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".json"])
def test_a_trial_without_figures_stops_the_gate(
    run: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trial 0 failed at its first step, trial 2 runs still: neither may be passed over, nor be the reference."""
    card = {"gain": Estimate(0.4, 0.3, 0.5)}
    own = {"seed": 0, "folder": str(run)}
    result = ArmResult("control", "control", 0.001, "finished", scorecard=card).to_dict()
    states = [("failed", "loss became nan"), ("complete", ""), ("running", "")]
    trials = [
        {"number": i, "state": s, "reason": why, "runs": [{**own, "result": result}] if i == 1 else []}
        for i, (s, why) in enumerate(states)
    ]
    flat = {"arm": "control", "learning_rate": 0.001, "gain": 0.4, "gain_low": 0.3, "gain_high": 0.5}
    rows = [{"trial": i, "state": s, "reason": why, **({**own, **flat} if i == 1 else {})}
            for i, (s, why) in enumerate(states)]  # fmt: skip
    path = exported(tmp_path / f"study{ending}", trials, rows)
    assert main(["gate", str(path), "--margin", "0.1"]) == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("pass  trial 1 control-0.001 seed 0: ")
    assert others == ["FAIL  trial 0: failed: loss became nan", "FAIL  trial 2: running"]


def test_a_figure_that_is_no_number_is_said_to_be_none(tmp_path: Path) -> None:
    """JSON has null for it: the retention of a base that knew nothing."""
    card = {"gain": Estimate(0.4, 0.3, 0.5), "retention": Estimate(0.5)}
    result = ArmResult("full", "full", 0.001, "finished", scorecard=card).to_dict()
    result["scorecard"]["retention"]["value"] = None
    trials = [{"number": i, "runs": [{"seed": 0, "folder": "nowhere", "result": result}]} for i in range(2)]
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"trials": trials}), encoding="utf-8")
    assert "+.40 [.30,.50]  n/a" in format_comparison(compare(read_runs([str(path)]), draws=200))
