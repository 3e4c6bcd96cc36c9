"""Arms of a run folder as runs to compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.common.errors import CompareError
from experiments.common.yaml_values import dump_yaml
from experiments.comparison.compare import compare
from experiments.comparison.inputs import read_runs
from experiments.records import ArmResult, read_records
from experiments.runs.arm_records import write_noted
from experiments.runs.result_file import write_result
from tests.helpers.planted_run import ARMS, records_of, write_run


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


def test_arms_are_in_the_order_of_the_config_whose_first_is_the_reference(run: Path, tmp_path: Path) -> None:
    here = tmp_path / "run"
    shutil.copytree(run, here)
    arms = [{"name": name, "learning_rates": [1e-3]} for name in ("lora", "full", "control")]
    (here / "config.yaml").write_text(dump_yaml({"arms": arms}))
    shutil.copytree(here / "arms" / "full-0.001", here / "arms" / "another-0.001")  # that the config does not have
    names = [one.name for one in read_runs([str(here)]) if one.checkpoints]
    expected = [f"{arm['name']}-0.001" for arm in arms if (here / "arms" / f"{arm['name']}-0.001").is_dir()]
    assert names[: len(expected)] == expected
    assert names != sorted(names)


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
    for steps, remarks in ((20, 0), (10, 1)):  # of `keep: best`, at the last step and before
        for folder, step in ((made, steps), (here / "arms" / "full-0.001", 20)):
            values = {"status": "finished", "arm": "full", "learning_rate": 1e-3, "steps": step}
            (folder / "result.json").write_text(json.dumps(values))
        shutil.move(made / "items-20.jsonl", made / f"items-{steps}.jsonl")
        said = f"{made.name}: made of the weights of step 10 (training.keep: best), and full-0.001 has the figures of "
        said += "step 20"
        assert compare(read_runs([str(here)]), draws=100).notes.count(said) == remarks
    (arm,) = read_runs([str(here / "arms" / "control-0.001")])
    assert arm.name == "control-0.001"


@pytest.mark.parametrize("status", [None, "failed", "pruned"])
def test_changed_records_of_an_arm_that_did_not_finish_are_not_compared(tmp_path: Path, status: str | None) -> None:
    """Its figures are shown with a note that it did not finish; they must be its own."""
    folder = write_run(tmp_path / "run", ARMS, n=40)
    arm = folder / "arms" / "full-0.001"
    write_noted(arm / "items-10.jsonl", read_records(arm / "items-10.jsonl"))
    if status:
        write_result(arm, ArmResult("full", "full", 1e-3, status, "it ended early", steps=10))  # type: ignore[arg-type]
    else:
        (arm / "result.json").unlink(missing_ok=True)
    (entry,) = read_runs([f"{folder}:full-0.001"])
    assert entry.fault == (f"{status}: it ended early" if status else "it has not finished")
    file = arm / "items-10.jsonl"
    file.write_text(file.read_text().replace('"correct": 1', '"correct": 0', 1))
    with pytest.raises(CompareError, match=r"items-10\.jsonl is not the file that"):
        read_runs([f"{folder}:full-0.001"])
