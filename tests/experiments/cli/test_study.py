"""What commands print can be run as it stands; places of any name; what follows the last trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import main as cli
from experiments.common.commands import command, program
from experiments.records import ArmResult
from experiments.studies import launch, trial
from experiments.studies import posthoc as afterwards
from experiments.studies.launch import run_study
from experiments.studies.posthoc import apply_posthoc
from experiments.studies.queue import Store
from experiments.studies.report.table import frame, status_text
from experiments.studies.report.write import _commands, _setup
from experiments.studies.storage import command_line, storage_url
from experiments.studies.trial import TrialOutcome, run_trial
from tests.experiments.studies.toy import open_store, toy_study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]
RANGE = {"rate": {"kind": "float", "path": "arms.0.learning_rates.0", "low": 1e-4, "high": 1e-1}}


def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
    return TrialOutcome([picks["rate"]])


class NoTracker:
    """MLflow needs seconds to make its store, and is not what is tested here."""

    id = "none"

    def __init__(self, *_: object) -> None:
        pass

    @contextmanager
    def run(self, *_: object, **__: object) -> Iterator[NoTracker]:
        yield self

    def reap(self, *_: object) -> None:
        pass

    log_metrics = log_file = log_text = set_tags = fail = reap


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
    assert "must be at least 1, but got -5" in capsys.readouterr().err
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


@pytest.mark.parametrize("name", ["what?", "%41", "{SCHEMA}", "a b"])
def test_the_storage_lies_in_a_root_of_any_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    Store(storage_url(root, None), toy_study()).begin()
    assert (root / "optuna.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_trial_without_picks_is_shown_and_left_out_of_the_setup(tmp_path: Path) -> None:
    """It was asked for, and its worker has not drawn its picks yet."""
    store = open_store(tmp_path, search=RANGE, sampler="random", budget={"trials": 3})
    with pytest.warns(UserWarning, match="Heartbeat"):
        store.study.ask()
    assert _setup(store).endswith("1 seed per trial, sampler random")
    assert "running: trial 0 ()" in status_text(store, tmp_path)
    assert list(frame(store).state) == ["running"]


def test_a_budget_of_hours_ends_a_grid_and_what_follows_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    monkeypatch.setattr(afterwards, "choose", lambda study, trials, root: chosen.append(len(trials)) or [])
    monkeypatch.setattr(launch, "run_trial", lambda study, number, picks, *_: run(number, picks, None))
    monkeypatch.setattr(launch, "Tracker", NoTracker)
    config = toy_study(budget={"hours": 1e-9}, posthoc=[{"arm": "arm", "op": "merge"}])
    said: list[str] = []
    store = run_study(config, tmp_path, say=said.append)
    assert [t.state for t in store.trials()] == ["complete", *["waiting"] * 5]
    assert store.ended().startswith("the budget of 1e-09 hours is spent (")
    assert chosen == [6]
    assert "arm-merge: arm 'arm' has no complete trial" in said
    apply_posthoc(config, [*store.trials()[:5], running(store)], tmp_path, said.append)
    assert chosen == [6]  # another machine still runs a trial
    more = toy_study(budget={"hours": 1}, posthoc=[{"arm": "arm", "op": "merge"}])
    assert [t.state for t in run_study(more, tmp_path, say=said.append).trials()] == ["complete"] * 6


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
    store.work(run, print)
    monkeypatch.setattr(launch, "Tracker", NoTracker)
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
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


def running(store: Store) -> Any:
    [last] = store.trials()[5:]
    last.state = "running"
    return last


def test_what_a_failed_trial_measured_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second seed fails."""
    results = [ArmResult("arm", "full", 1e-3, "finished"), ArmResult("arm", "full", 1e-3, "failed", "loss became nan")]

    class Done:
        folder = tmp_path / "runs" / "r"

        def __init__(self) -> None:
            self.results = [results.pop(0)]

    monkeypatch.setattr(trial, "run_experiment", lambda *_, **__: Done())
    monkeypatch.setattr(trial, "Tracker", NoTracker)
    store = open_store(tmp_path, seeds=[0, 1], search=RANGE, sampler="random", budget={"trials": 1})
    store.work(lambda number, picks, report: run_trial(store.config, number, picks, tmp_path, None), print)
    [failed] = store.trials()
    assert (failed.state, failed.reason) == ("failed", "seed 1: loss became nan")
    assert [(r["seed"], r["result"]["status"]) for r in failed.runs] == [(0, "finished"), (1, "failed")]
    table = frame(store)
    assert list(table.seed) == [0, 1]
    assert list(table.reason) == ["seed 1: loss became nan"] * 2
