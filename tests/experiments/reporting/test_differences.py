"""Intervals, paired p and flips of a run's arms, as MLflow's table and as a page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.comparison.compare import compare
from experiments.comparison.inputs import read_runs
from experiments.records import ArmResult, Estimate
from experiments.reporting.differences import HEAD, ArmDifferences, arm_differences, differences_table
from experiments.scorecard import scorecard
from experiments.scorecard.differences import Difference
from tests.helpers.planted_run import ARMS, write_run

DRAWS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "sums-1", ARMS)


@pytest.fixture(scope="module")
def found(folder: Path) -> ArmDifferences:
    runs = read_runs([str(folder)])
    results = [ArmResult(run.name.rpartition("-")[0], "full", 1e-3, "finished") for run in runs]
    last = {f"{r.arm} 1e-3": run.after for r, run in zip(results, runs, strict=True)}
    for result, run in zip(results, runs, strict=True):
        result.scorecard = scorecard(run.base, run.after, DRAWS)
    made = arm_differences(runs[0].base, last, results, DRAWS, 0)
    assert made is not None
    assert arm_differences(runs[0].base, last, results[:1], DRAWS, 0) is None
    assert arm_differences(runs[0].base, last, [replace(r, status="failed") for r in results], DRAWS, 0) is None
    return made


def test_the_differences_are_those_of_compare(folder: Path, found: ArmDifferences) -> None:
    others = {
        (d.name.rpartition("-")[0], d.figure): d for d in compare(read_runs([str(folder)]), draws=DRAWS).differences
    }
    assert found.found
    for one in found.found:
        same = others[one.name.partition(" ")[0], one.figure]
        assert (one.value, one.p, one.p_holm) == (same.value, same.p, same.p_holm)


def test_they_are_written_as_mlflow_reads_tables_and_as_a_page(tmp_path: Path, found: ArmDifferences) -> None:
    assert found.write(tmp_path, "") == ["comparison.json", "comparison.html"]
    table = json.loads((tmp_path / "comparison.json").read_text())
    assert table["columns"] == list(HEAD)
    rows = [dict(zip(HEAD, row, strict=True)) for row in table["data"]]
    kept = {row["arm"]: row for row in rows if row["figure"] == "retention"}
    assert kept[found.reference]["difference"] is None
    (other,) = (row for arm, row in kept.items() if arm != found.reference)
    assert other["difference_low"] < other["difference"] < other["difference_high"]
    assert 0 <= other["p"] <= other["p_holm"] <= 1
    assert {"nfr"} <= {row["figure"] for row in rows}
    page = (tmp_path / "comparison.html").read_text()
    assert f"Differences to {found.reference}" in page


def test_a_small_difference_of_distances_is_not_written_as_none() -> None:
    one = Difference("a", "kl", Estimate(0.0003, 0.0001, 0.0006), 0.0001, 0.0002)
    rows = differences_table([one, replace(one, figure="gain")], "b", "arm").rows
    assert [row[2] for row in rows] == ["+.0003 [.0001,.0006]", ".000 [.000,.001]"]
