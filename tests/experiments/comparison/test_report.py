"""Files of a comparison hold the figures of its table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.common.errors import CompareError
from experiments.comparison.compare import compare
from experiments.comparison.inputs import read_runs
from experiments.comparison.report import comparison_csv, write_comparison
from tests.helpers.planted_run import ARMS


@pytest.mark.parametrize("page", [True, False])
@pytest.mark.slow
def test_files_hold_the_figures_of_the_table(run: Path, tmp_path: Path, page: bool) -> None:
    result = compare(read_runs([str(run)]), draws=200)
    write_comparison(result, tmp_path, page)
    path = write_comparison(result, tmp_path, page)  # in place of the earlier one
    text = path.read_text(encoding="utf-8")
    assert path.name == ("compare.html" if page else "compare.md")
    assert ("data:image/svg+xml;base64," in text) == page
    assert all(name in text for name in ARMS)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "compare.csv").read_text(encoding="utf-8").splitlines()))
    own = next(r for r in rows if (r["kind"], r["run"], r["figure"]) == ("figure", "full-0.001", "retention"))
    assert float(own["value"]) == result.cards["full-0.001"]["retention"].value
    assert comparison_csv(result).count("difference,") == len(result.differences)


def test_a_page_replaces_no_table_or_picture_of_others(run: Path, tmp_path: Path) -> None:
    """`--out results.html` next to somebody's results.csv; what an earlier call has written is written anew."""
    result, out = compare(read_runs([str(run)]), draws=200), tmp_path / "results.html"
    (tmp_path / "results.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(
        CompareError, match=r"have one name, and results\.csv would be replaced, which no comparison wrote: choose"
    ):
        write_comparison(result, out)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    (tmp_path / "results.csv").unlink()
    assert write_comparison(result, out) == write_comparison(result, out) == out


def test_a_comparison_replaces_no_file_of_others(run: Path, tmp_path: Path) -> None:
    result = compare(read_runs([str(run)]), draws=200)
    for ending in (".md", ".html", ".csv", ".png"):
        mine = tmp_path / f"compare{ending}"
        mine.write_text("# My notes\n# Runs on their common items\n", encoding="utf-8")
        with pytest.raises(CompareError, match=rf"compare\{ending} would be replaced, which no comparison wrote"):
            write_comparison(result, tmp_path, page=ending == ".html")
        assert [path.name for path in tmp_path.iterdir()] == [mine.name]
        mine.unlink()
