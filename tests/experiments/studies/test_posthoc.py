"""Operations after the last trial are rows of the study's report."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.common.errors import DamagedError
from experiments.posthoc.run import result_folder
from experiments.runs.result_file import write_result
from experiments.studies.exchange import unpack_runs, write_trials
from experiments.studies.posthoc import apply_posthoc, posthoc_rows
from experiments.studies.queue import Store
from experiments.studies.report.paper import compared
from experiments.studies.report.readings import matched_gain
from experiments.studies.report.write import _csv, _notes
from experiments.studies.selection import choose
from experiments.studies.trial_results import result_of
from tests.helpers.planted_study import odd

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_an_operation_after_training_is_a_row_of_its_own(some: tuple[Store, Path], tmp_path: Path) -> None:
    """The merged model here is the base: it gains nothing and forgets nothing, on the half that is reported.

    It is made of the weights of step 20, as with `training.keep: best`, which the report said nowhere.
    """
    store, root = some
    arms = choose(store.config, store.trials(), root)
    assert posthoc_rows(store.config, arms, root) == []
    chosen = next(arm for arm in arms if arm.name == "lerp8-mse")
    here = tmp_path / "root"
    shutil.copytree(root / "runs", here / "runs")
    [run] = chosen.runs
    result = replace(result_of(run), operation="merge", steps=20)
    folder = result_folder(here / run["folder"], result)
    folder.mkdir(parents=True)
    shutil.copy(here / run["folder"] / "base" / "items.jsonl", folder / f"items-{result.steps}.jsonl")
    write_result(folder, result)
    [row] = posthoc_rows(store.config, arms, here)
    lines: list[str] = []
    apply_posthoc(store.config, store.trials(), here, lines.append)
    assert lines == [], "trials of an archive have results of operations, and no weights to apply them to again"
    assert (row.name, row.halves, row.trial.number) == ("lerp8-mse-merged", True, chosen.trial.number)
    assert (row.result.scorecard["gain"].value, row.result.scorecard["retention"].value) == (0, 1)
    said = (
        "lerp8-mse-merged: made of the weights of step 20 (training.keep: best), and lerp8-mse has the figures of step "
    )
    assert f"{said}40" in _notes(store, [*arms, row], store.trials(), here, "")
    base = odd(here / run["folder"] / "base" / "items.jsonl")
    right = [r.correct for r in base if r.suite == "kept" and r.correct is not None]
    assert row.result.scorecard["kept_accuracy"].value == pytest.approx(sum(right) / len(right))
    costs = [next(csv.DictReader(io.StringIO(_csv([one]))))["seconds"] for one in (chosen, row)]
    assert (float(costs[0]), costs[1]) == (chosen.trial.seconds, "")  # of its training, which the operation had not
    assert "merged" not in matched_gain([*arms, row], here)  # two points are no trajectory
    assert "lerp8-mse-merged" in compared([*arms, row]).index
    for each in here.glob("runs/*"):
        (each / "config.yaml").write_text("name: toy")
    there = tmp_path / "shared"
    there.mkdir()
    write_trials(store.config, store.trials(), here, there)
    unpack_runs(there, there)
    assert posthoc_rows(store.config, arms, there)[0].result == row.result  # without weights, nobody else can make it
    (next(there.glob("runs/*/posthoc/*/items-*.jsonl"))).write_text("")
    write_trials(store.config, store.trials(), there, here)
    with pytest.raises(DamagedError, match="is not the file that"):
        unpack_runs(here, tmp_path / "third")
