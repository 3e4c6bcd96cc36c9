"""Commands of studies that are printed can be run as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import main as cli
from experiments.cli.study import PICTURES
from experiments.common.commands import command, program
from experiments.common.files import write_json
from experiments.studies import launch
from experiments.studies.queue import Store
from experiments.studies.report.table import status_text
from experiments.studies.report.write import _commands
from experiments.studies.storage import command_line
from tests.helpers.toy_study import RANGE, NoTracker, open_store, run_at_rate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A study begun in a storage of its own, and a working directory that holds neither it nor the root."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    changes = {"search": RANGE, "sampler": "random", "budget": {"trials": 2}}
    return open_store(tmp_path / "there", **changes)


def test_printed_commands_find_the_study_again(
    elsewhere: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    line = status_text(elsewhere, root).splitlines()[-1].removeprefix("not finished: ")
    options = ["toy", "--root", "../root", "--storage", "sqlite:///../there/optuna.db"]
    assert line == command("resume", *options)
    assert cli.main(["status", *options]) == 0
    assert line in capsys.readouterr().out
    assert cli.main(["add-trials", "toy", "3", *options[1:]]) == 0
    assert "the budget is 5 trials; to run them: " + line in capsys.readouterr().out
    assert cli.main(["add-trials", "toy", "-5", *options[1:]]) == 2
    assert "must be 1 to 100000, but got -5" in capsys.readouterr().err
    commands = _commands(elsewhere, root, tmp_path / "here" / "results")
    assert "study results/study.yaml --workers 1 --root ../root --storage" in commands[0]
    assert "report toy --out results --root ../root" in commands[-1]
    assert str(tmp_path) not in "".join(commands)


def test_a_study_is_found_by_its_name_in_the_storage_of_its_yaml(
    elsewhere: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "here" / "mlruns"
    (root / "studies" / "toy").mkdir(parents=True)
    note = yaml.safe_dump({**elsewhere.config.to_dict(), "storage": elsewhere.url})
    (root / "studies" / "toy" / "study.yaml").write_text(note)
    assert cli.main(["status", "toy"]) == 0
    assert f"not finished: {command('resume', 'toy')}\n" in capsys.readouterr().out
    assert command_line(elsewhere, root, "export", "toy") == command("export", "toy")


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"search": RANGE, "sampler": "random", "budget": {"trials": 2}}, "more trials: {} add-trials toy 10 --root "),
        ({"budget": {"trials": 2}}, "more trials: {} add-trials toy 10 --root "),
        ({"search": RANGE, "sampler": "random", "budget": {"hours": 1e-12}}, "more trials: raise budget.hours"),
        ({}, ""),
    ],
)
def test_a_finished_study_starts_no_worker_and_says_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    more: str,
) -> None:
    store = open_store(tmp_path, **changes)
    store.work(run_at_rate, print)
    monkeypatch.setattr(launch, "Tracker", NoTracker)
    started = "experiments.studies.workers.subprocess.Popen"
    monkeypatch.setattr(started, lambda *_, **__: pytest.fail("a worker was started"))
    assert cli.main(["resume", "toy", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    start = program()
    assert f"\ntoy: finished\nreport: {start} report toy --root " in said
    assert more.format(start) in said
    assert ("more trials" in said) == bool(more)
    assert store.ended() in said
    if "add-trials" in more:
        assert cli.main(["add-trials", "toy", "1", "--root", str(tmp_path)]) == 0
        with pytest.raises(pytest.fail.Exception, match="a worker was started"):
            cli.main(["resume", "toy", "--root", str(tmp_path)])


class Sent:
    """A store that notes what it is sent."""

    def __init__(self, root: Path, experiment: str) -> None:
        self.client, self.files = self, list[str]()

    def log_artifact(self, run_id: str, path: str, folder: str) -> None:
        SENT.append(Path(path).name)


SENT: list[str] = []


def test_a_report_sends_its_own_files_and_replaces_none_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--out .`: the folder has files that a shared store must not get, and a YAML with somebody's comments."""
    store, out = open_store(tmp_path, budget={"trials": 1}), tmp_path / "out"
    store.work(run_at_rate, print)
    monkeypatch.setattr("experiments.tracking.tracker.Tracker", Sent)
    write_json(tmp_path / "studies" / "toy" / "mlflow.json", {"run_id": "1"})
    out.mkdir()
    for name in ("salaries.csv", "README.md", "me.png"):
        (out / name).write_text("private", encoding="utf-8")
    (out / "study.yaml").write_text("# my comments\nname: toy\n", encoding="utf-8")
    line = ["report", "toy", "--root", str(tmp_path), "--out", str(out)]
    assert cli.main(line) == 2
    assert "has a study.yaml of its own, which the report would replace: name another" in capsys.readouterr().err
    assert len(list(out.iterdir())) == 4
    (out / "study.yaml").rename(out / "table.csv")
    assert cli.main(line) == 2
    assert "has a table.csv of its own, which the report would replace: name another" in capsys.readouterr().err
    (out / "table.csv").unlink()
    for name in ("report.md", "report.html", "forgetting.png", "slice-1.png", "trials.tar.xz"):
        (out / name).write_text("# Mine\nBrackets: 95 % intervals.", encoding="utf-8")  # as a run's report
        assert cli.main(line) == 2
        assert f"has a {name} of its own, which the report would replace" in capsys.readouterr().err
        (out / name).unlink()
    SENT.clear()
    for _ in range(2):  # the second finds the first one's YAML
        assert cli.main(line) == 0
    assert {"report.html", "report.md", "table.csv"} <= set(SENT)
    assert not {"salaries.csv", "README.md", "me.png"} & set(SENT)
    pictures = {path.name for path in out.glob("*.png")} - {"me.png"}
    assert pictures <= set(SENT)
    assert all(re.fullmatch(PICTURES, name) for name in pictures)
    (out / "study.yaml").write_text((out / "study.yaml").read_text().replace("trials: 1", "trials: 9"))
    assert cli.main(line) == 0, "more trials were added meanwhile"
    (out / "study.yaml").write_text("name: tiny\n", encoding="utf-8")
    assert cli.main(line) == 2, "the report of another study"
