"""`runs` and `show`: a line on each run and study, and one of them in full with the command that continues it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from experiments.cli import main as cli
from experiments.cli.runs import config_lines
from experiments.common.commands import command
from experiments.common.files import write_json, write_text
from experiments.records import ArmResult, Estimate
from experiments.tracking.journal import Journal
from experiments.tracking.run import flatten
from tests.helpers.run_folders import CONFIG, add_result, make_measurement, make_run, make_study
from tests.helpers.toy_study import open_store, value


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default one of the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    return tmp_path / "mlruns"


def test_nothing_was_run_yet(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs"]) == 0
    assert capsys.readouterr().out == f"nothing was run below mlruns yet: {command('run', 'quickstart')}\n"


def test_a_line_on_each(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(root, results={"full 0.001": {"gain": 0.521, "retention": 0.98}})
    make_run(root, "texts-0123abcd", {"control 0.001": {"new_nll_drop": 0.2}})
    make_study(root, "axes", trials={"complete": 3}, limit=16, ended="")
    assert cli.main(["runs"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["folder", "status", "done", "best", "gain", "retention", "of", "arm", "age"]
    cells = {line.split()[0]: line.split()[1:-2] for line in lines}
    assert cells == {
        "mlruns/runs/demo-0123abcd": ["stopped", "1/3", "arms", "+0.52", "0.98", "full", "0.001"],
        "mlruns/runs/texts-0123abcd": ["stopped", "1/3", "arms", "+0.20", "nats", "control", "0.001"],
        "mlruns/studies/axes": ["stopped", "3/16", "trials"],
    }


def test_show_a_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(root, results={"full 0.001": {"gain": 0.5, "retention": 0.9}})
    add_result(folder, "control 0.001", "failed")
    assert cli.main(["show", "demo"]) == 0
    said = capsys.readouterr().out
    assert re.match(r"demo-0123abcd: stopped, 2 of 3 arms, last change \d+ s ago\n\nbase model  some-model, ", said)
    assert "\nnew task    reasoning_gym chain_sum\n" in said
    assert "\nevaluation  every 10 steps: new, kept\n" in said
    assert re.search(r"\nfull +1e-3 +\+\.50 +\.90 ", said)
    assert re.search(r"\ncontrol +1e-3 +failed: no reason was recorded\n", said)
    assert "\nfull-0.0001: no result yet\n" in said
    assert said.endswith(f"\nreport:  not written yet\ngo on:   {command('run', folder / 'config.yaml')}\n")
    add_result(folder, "full 0.0001", "finished", {"gain": 0.1, "retention": 1.0})
    add_result(folder, "control 0.001", "finished", {"gain": 0.2, "retention": 1.0})
    (folder / "report.html").touch()
    write_json(folder / "base" / "timing.json", {"precision": "bf16"})
    assert cli.main(["show", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "precision auto (bf16), seed" in said
    assert said.endswith("\nreport:  mlruns/runs/demo-0123abcd/report.html\n")


def test_an_edited_config_is_not_shown_as_that_of_the_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(root)
    journal = Journal.create(folder, "experiment-demo")
    journal.append("params", params=flatten({"name": folder.name, **CONFIG, "base_model": "another"}))
    assert cli.main(["show", "demo"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "config.yaml was edited: it has other settings than demo-0123abcd ran with (base_model)" in said.err


def test_the_command_of_another_root_names_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(root.parent / "else where")
    assert cli.main(["show", str(folder)]) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("go on:   ")
    assert shlex.split(line)[-4:] == ["run", "else where/runs/demo-0123abcd/config.yaml", "--root", "else where"]


def test_show_a_measurement(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_measurement(root, "measure-base-0123abcd", "measure", {"mine": {"retention": 0.9}, "other": None})
    assert cli.main(["runs"]) == 0
    cells = capsys.readouterr().out.splitlines()[-1].split()[:-2]
    assert cells == ["mlruns/runs/measure-base-0123abcd", "stopped", "1/2", "models", "0.90", "mine"]
    assert cli.main(["show", "measure"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("measure-base-0123abcd: measure, stopped, 1 of 2 models, last change ")
    assert "\nbase model  some-model, precision fp32, seed 0\nnew task    none\nsuites      kept, drift\n" in said
    ends = "report:  not written yet\ngo on:   give the command measure once more, with the same options\n"
    assert said.endswith(ends)
    make_measurement(root, "measure-base-0123abcd", "measure", {"mine": {"retention": 0.9}})
    write_text(folder / "report.txt", "mine lost 3 of 7 kept answers.\n")
    (folder / "report.html").touch()
    assert cli.main(["show", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("measure-base-0123abcd: measure, finished, 1 of 1 models, ")
    ends = "\nmine lost 3 of 7 kept answers.\n\nreport:  mlruns/runs/measure-base-0123abcd/report.html\n"
    assert said.endswith(ends)


def test_show_a_study(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.studies.storage import note_progress
    from experiments.studies.trial_results import TrialOutcome

    store = open_store(root, question="Does it?", budget={"trials": 2})
    make_study(root, "toy")
    store.work(lambda number, picks, report: TrialOutcome([value(picks)]), lambda text: None)
    note_progress(store, root)
    assert cli.main(["show", "toy"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Does it?\n\ntoy: 2 complete of 2\n")
    assert "all 2 trials are finished\n" in said
    assert said.endswith(f"\nreport:  not written yet: {command('report', 'toy')}\n")
    assert cli.main(["runs"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["mlruns/studies/toy", "finished", "2/2", "trials"]
    assert cli.main(["add-trials", "toy", "3"]) == 0
    capsys.readouterr()
    assert cli.main(["runs"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["mlruns/studies/toy", "stopped", "2/5", "trials"]


def test_sources_and_replay_in_a_line() -> None:
    new = [{"source": "file", "share": 0.5, "path": "a.jsonl"}, {"source": "python", "share": 0.5, "length": 9}]
    data = {"new": new, "old": [{"source": "self", "share": 1.0}], "replay": 0.25}
    lines = config_lines({**CONFIG, "data": data})
    assert lines["new task"] == "file a.jsonl + python, 25% replay of self"
    for whole, own, said in (
        (0.25, (None, 0.0), ", 0% to 25% replay of self"),
        (0.0, (0.5, 0.5), ", 50% replay of self"),
        (0.0, (0.0, None), ""),
        (0.5, (0.0, 0.0), ""),
    ):
        arms = [{**CONFIG["arms"][0], "replay": share} for share in own]
        lines = config_lines({**CONFIG, "data": data | {"replay": whole}, "arms": arms})
        assert lines["new task"] == f"file a.jsonl + python{said}"


def test_the_rows_of_a_step_are_those_of_all_its_batches() -> None:
    training = {**CONFIG["training"], "steps": 5, "batch_size": 4, "gradient_accumulation": 8}
    assert config_lines({**CONFIG, "training": training})["training"] == "5 steps of 32 rows"


def test_a_run_that_is_measured_at_its_end_alone_says_so() -> None:
    evaluation = {**CONFIG["evaluation"], "every": None}
    assert config_lines({**CONFIG, "evaluation": evaluation})["evaluation"].startswith("at the end: ")


def test_show_tells_operations_on_an_arm_from_the_arm(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(root, results={"full 0.001": {"gain": 0.5, "retention": 0.9}})
    result = ArmResult("full", "full", 1e-3, "finished", operation="wise 0.5", scorecard={"gain": Estimate(0.3)})
    write_json(folder / "posthoc" / "full-0.001-wise-0.5" / "result.json", result.to_dict())
    assert cli.main(["show", "demo"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\nfull +1e-3 +\+\.50 ", said)
    assert re.search(r"\nfull wise 0\.5 +1e-3 +\+\.30 ", said)
