"""Folders of runs, studies and measurements are found by path, by name, and by the beginning of a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.common.result_folders import find, trial_runs
from experiments.tracking.journal import Journal
from tests.helpers.run_folders import make_run, make_study


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default one of the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    return tmp_path / "mlruns"


class TestFind:
    @pytest.fixture(autouse=True)
    def made(self, root: Path) -> None:
        make_study(root, "table5")
        for name in ("table5-001-00000000", "table5-002-00000000", "demo-0123abcd", "demo-4567abcd", "other-00000000"):
            make_run(root, name)

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("other", "runs/other-00000000"),
            ("demo-0", "runs/demo-0123abcd"),
            ("table5", "studies/table5"),
            ("tab", "studies/table5"),
            ("table5-002", "runs/table5-002-00000000"),
            ("mlruns/runs/other-00000000", "runs/other-00000000"),
            ("mlruns/studies/table5/", "studies/table5"),
        ],
    )
    def test_by_folder_name_or_beginning(self, root: Path, name: str, found: str) -> None:
        assert find(name, root) == (root / found).resolve()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("demo", "2 names begin with 'demo': demo-0123abcd, demo-4567abcd"),
            ("table5-00", "2 names begin with 'table5-00': table5-001-00000000, table5-002-00000000"),
            ("tabel5", "no run or study 'tabel5' below mlruns: did you mean 'table5'"),
        ],
    )
    def test_what_is_not_one(self, root: Path, name: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            find(name, root)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no run or study 'x' below none: known: none"):
            find("x", tmp_path / "none")


def test_a_run_of_its_own_whose_name_looks_like_a_trial_is_none(root: Path) -> None:
    """It would be missing in the list of runs, and its figures would count as the study's."""
    study, names = make_study(root, "facts"), ("facts-001-0123abcd", "facts-002-0123abcd", "facts-2026-0123abcd")
    runs = [make_run(root, name) for name in names]
    for run, experiment in zip(runs[1:], ("facts", "facts-2026"), strict=True):  # the first is of an archive
        journal = Journal.create(run, "experiment-x")
        journal.append("start", name="x", experiment=experiment, parent=None, run=None, tags={})
    assert trial_runs(study, runs) == runs[:2]
