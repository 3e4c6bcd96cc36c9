"""A study's report shows the lost and won answers of its arms as their runs' reports have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.records import ArmResult
from experiments.reporting.answers import FEW, FILE, HEAD, SHOWN, WRITTEN, write_turned
from experiments.reporting.table import Table
from experiments.studies.report.answers import answers_table
from experiments.studies.selection import ReportRow
from experiments.studies.trials import Trial


def row(root: Path, name: str, lost: int = 9, operation: str = "", seeds: int = 1) -> ReportRow:
    """An arm whose run lost some answers and won nine, and another arm of the same run."""
    result = ArmResult(name, "full", 1e-3, "finished", operation=operation or None)
    label = f"{name} 1e-3"
    rows = [[label, "lost", "capitals", f"lost {i} by {name}", "Oslo", "Oslo", "Rome"] for i in range(lost)]
    rows += [[label, "won", "capitals", f"won {i} by {name}", "Oslo", "Rome", "Oslo"] for i in range(9)]
    rows += [["other 1e-3", "lost", "capitals", "not asked of this arm", "", "", ""]]
    folder = root / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_turned(folder, Table("", HEAD, tuple(map(tuple, rows))))
    runs = [{"seed": seed, "folder": f"runs/{name}", "result": result.to_dict()} for seed in range(seeds)]
    return ReportRow(f"#0 {name}", Trial(0, "complete", {}, [1.0], "", 1, 1.0, True), runs, result, 1, True, False)


def test_an_arm_has_its_own_rows_lost_first(tmp_path: Path) -> None:
    table = answers_table([row(tmp_path, "full", seeds=3), row(tmp_path, "merged", operation="merge")], tmp_path)
    assert table is not None
    assert table.head == HEAD
    assert [cells[:2] for cells in table.rows] == [("#0 full", "lost")] * SHOWN + [("#0 full", "won")] * FEW
    assert table.rows[0][3] == "lost 0 by full"
    assert "Of the first seed." in table.note


def test_many_arms_have_fewer_rows_each(tmp_path: Path) -> None:
    table = answers_table([row(tmp_path, f"arm{i}") for i in range(25)], tmp_path)
    assert table is not None
    assert len(table.rows) == 20 * 2 * FEW
    assert "The first 20 of 25 arms." in table.note


def test_a_table_that_was_changed_or_is_of_another_run_is_left_out_and_said(tmp_path: Path) -> None:
    arms = [row(tmp_path, "full"), row(tmp_path, "control", lost=1)]
    full, control = (tmp_path / "runs" / name for name in ("full", "control"))
    whole = (full / FILE).read_text()
    for text in (whole.replace("Rome", "Oslo"), (control / FILE).read_text(), whole[:-9]):
        (full / FILE).write_text(text)
        table = answers_table(arms, tmp_path)
        assert table is not None
        assert {cells[0] for cells in table.rows} == {"#0 control"}
        assert f"Without #0 full: {FILE} is not as the run wrote it." in table.note
    (full / FILE).write_text(whole)
    (full / "sources.json").write_text('{"config": "of another run"}')
    for name in (FILE, WRITTEN):  # of another run of the same arm
        (full / name).write_bytes((control / name).read_bytes())
    (full / WRITTEN).write_text((full / WRITTEN).read_text().replace('"owner": {}', '"owner": {"config": "x"}'))
    assert "Without #0 full" in str(answers_table(arms, tmp_path))
    (full / FILE).write_text(whole)
    (full / WRITTEN).unlink()  # an earlier version
    table = answers_table(arms, tmp_path)
    assert table is not None
    assert {cells[0] for cells in table.rows} == {"#0 full", "#0 control"}
    assert "Without" not in table.note


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_run_without_a_whole_file_is_left_out(content: str | None, tmp_path: Path) -> None:
    arms = [row(tmp_path, "full"), row(tmp_path, "control", lost=1)]
    broken = tmp_path / "runs" / "full" / FILE
    broken.unlink() if content is None else broken.write_text(content)
    table = answers_table(arms, tmp_path)
    assert table is not None
    assert {cells[0] for cells in table.rows} == {"#0 control"}
    assert answers_table(arms[:1], tmp_path) is None
