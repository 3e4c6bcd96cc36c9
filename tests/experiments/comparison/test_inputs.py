"""What can be compared: runs, studies, results of lm_eval, and what was made of an arm."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.cli.main import main
from experiments.common.errors import CompareError, ConfigError
from experiments.common.files import write_json, write_text
from experiments.common.owner import CONFIG, SOURCES
from experiments.common.yaml_values import dump_yaml
from experiments.comparison.compare import compare
from experiments.comparison.inputs import ComparedRun, _stages, read_runs, share_base
from experiments.comparison.report import format_comparison
from experiments.records import ArmResult, Estimate, Record, read_records, write_records
from tests.helpers.planted_run import ARMS, records_of, samples, write_run
from tests.helpers.stream_answers import ENDS, NEW
from tests.helpers.stream_answers import config as stream_config


def test_runs_are_cut_to_common_items_with_the_same_content(run: Path, tmp_path: Path) -> None:
    small = write_run(tmp_path / "sums-2", {"full-0.001": (0.3, 0.5)}, n=300)
    base = small / "base" / "items.jsonl"
    changed = [dataclasses.replace(r, options=("x", *r.options[1:])) if r.item == "7" and r.options else r
               for r in read_records(base)]  # fmt: skip
    write_records(base, changed)
    entries = read_runs([f"{run}:full-0.001", str(small)])
    assert [e.name for e in entries] == ["sums-1:full-0.001", "sums-2:full-0.001"]
    result = compare(entries, draws=200)
    assert result.items == {"kept": 299, "new": 150}
    assert any("suite kept: 299 items are common to all runs, of 400" in note for note in result.notes)
    assert any("base models answer differently" in note for note in result.notes)


def test_runs_with_nothing_in_common_are_named_and_not_compared(run: Path) -> None:
    first, second = read_runs([str(run)])
    moved = [dataclasses.replace(r, item=f"other {r.item}") for r in second.after]
    base = [dataclasses.replace(r, item=f"other {r.item}") for r in second.base]
    result = compare([first, dataclasses.replace(second, base=base, checkpoints={20: moved})], draws=200)
    assert result.differences == []
    assert any("suite kept: 0 items are common" in note for note in result.notes)
    assert "suite kept: 0 items" in format_comparison(result)


def test_a_run_without_a_base_is_measured_from_the_first_such_run(run: Path) -> None:
    """As folders of lm_eval samples are: the model before, then the models after."""
    base, after = records_of(run, "full-0.001")
    bare = [ComparedRun("before", checkpoints={1: base}), ComparedRun("x", checkpoints={1: after})]
    (measured,) = share_base(bare)
    assert (measured.name, measured.base, measured.after) == ("x", base, after)
    assert [e.base for e in share_base(bare, after)] == [after, after]
    own = ComparedRun("own", base, {1: after})
    assert share_base([own]) == [own]
    with pytest.raises(CompareError, match="x has no base to be measured from"):
        share_base(bare[1:])


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
    path = tmp_path / f"study{ending}"
    if ending == ".json":
        path.write_text(json.dumps({"trials": trials}), encoding="utf-8")
    elif ending == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path, index=False)
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


def test_items_that_were_asked_with_other_examples_do_not_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    before, after = (samples(tmp_path / str(shots), rng, {"mmlu": 0.7}, shots) for shots in (0, 5))
    assert main(["gate", str(after), "--base", str(before)]) == 2
    assert "was asked in other words in base and after" in capsys.readouterr().err


def test_what_was_made_of_an_arm_is_an_entry_too(run: Path, tmp_path: Path) -> None:
    here = tmp_path / run.name
    shutil.copytree(run, here)
    made = here / "posthoc" / "full-0.001-wise-0.5"
    shutil.copytree(here / "arms" / "full-0.001", made)
    (made / "items-10.jsonl").unlink()
    assert [e.name for e in read_runs([str(here)])] == [*sorted(ARMS), made.name]
    for named in (str(made), f"{here}:{made.name}"):
        (entry,) = read_runs([named])
        assert (entry.name, entry.after) == (made.name, records_of(run, "full-0.001")[1])
        assert entry.base == records_of(run, "full-0.001")[0]
    alone = [f"{here}:full-0.001", f"{here}:control-0.001"]  # as notebook 02 names them, on its second Run All
    assert [e.name for e in read_runs(alone)] == ["full-0.001", "control-0.001"]
    assert compare(read_runs(alone), draws=200) == compare(
        read_runs([f"{run}:{a.split(':')[1]}" for a in alone]), draws=200
    )
    (arm,) = read_runs([str(here / "arms" / "control-0.001")])
    assert arm.name == "control-0.001"


def test_colons_in_the_names_of_arms_and_folders(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a:b", {"r=16: 50-0.001": (0.0, 0.5)}, n=40)
    (entry,) = read_runs([f"{folder}:r=16: 50-0.001"])
    assert entry.name == "r=16: 50-0.001"
    with pytest.raises(CompareError, match=r"has no arm 'x': "):
        read_runs([f"{folder}:x"])


def test_drift_on_replies_of_other_lengths_is_not_compared(run: Path) -> None:
    first, second = read_runs([str(run)])
    kl = [[Record("drift", "base replies", "kl", str(i), value=0.1, tokens=n) for i in range(9)] for n in (48, 8)]
    pair = [dataclasses.replace(e, checkpoints={20: [*e.after, *k]}) for e, k in zip((first, second), kl, strict=True)]
    result = compare(pair, draws=200)
    assert not any(d.figure == "kl" for d in result.differences)
    assert any("suite drift: 0 items are common" in note for note in result.notes)
    cut = [e for e in first.base if e.item != "0"], {20: [r for r in first.after if r.item != "0"]}
    notes = compare([first, ComparedRun("cut", *cut)], draws=200).notes
    assert not any("base models answer differently" in note for note in notes)  # of the same base, fewer items


def test_records_of_a_step_that_a_finished_arm_did_not_measure_do_not_count(tmp_path: Path) -> None:
    """The last step is judged: a file of another run with a higher step would take its place."""
    folder = write_run(tmp_path / "run", ARMS, n=40)
    arm = folder / "arms" / "full-0.001"
    values = {
        "status": "finished",
        "reason": None,
        "steps": 20,
        "trajectory": [{"step": 0}, {"step": 10}, {"step": 20}],
    }
    (arm / "result.json").write_text(json.dumps(values))
    shutil.copy(folder / "arms" / "control-0.001" / "items-20.jsonl", arm / "items-99.jsonl")
    (entry,) = read_runs([f"{folder}:full-0.001"])
    assert sorted(entry.checkpoints) == [10, 20]


def test_the_stages_of_a_stream_are_those_that_it_ran_with(tmp_path: Path) -> None:
    """Tasks that are swapped in config.yaml would swap their figures."""
    config, swapped = stream_config(), stream_config(data={"new": NEW[::-1], "order": "sequential"})
    write_json(tmp_path / SOURCES, {CONFIG: config.digest()})
    write_text(tmp_path / "config.yaml", dump_yaml(config.to_dict()))
    assert list(_stages(tmp_path).values()) == list(ENDS)
    write_text(tmp_path / "config.yaml", dump_yaml(swapped.to_dict()))
    with pytest.raises(ConfigError, match=r"config\.yaml was edited: it has other settings than .* ran with"):
        _stages(tmp_path)
    write_text(tmp_path / "config.yaml", "data: {order: sequential, of_another_version: 1}")
    assert _stages(tmp_path) == {}
