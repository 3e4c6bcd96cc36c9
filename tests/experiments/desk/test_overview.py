"""How far runs and studies are, read from the files that they leave at each stage of their life."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.files import read_json, write_json, write_text
from experiments.common.hashing import file_digest, json_digest
from experiments.common.paths import SHIPPED
from experiments.common.yaml_values import dump_yaml
from experiments.config import load_config
from experiments.desk.overview import (
    Overview,
    age,
    arm_text,
    chosen_alpha,
    own_config,
    read_all,
    read_measurement,
    read_run,
)
from experiments.records import ArmResult, Estimate
from experiments.runs.result_file import read_result, write_result
from experiments.scorecard.figures import GAINS
from experiments.tracking.journal import Journal
from experiments.tracking.machine import process_tags
from experiments.tracking.run import flatten
from tests.helpers.run_folders import add_result, make_measurement, make_run, make_study

DEAD = {"pid": "1", "pid_started": "0"}  # a process that is not that of today's id 1


def start(folder: Path, **tags: str) -> Journal:
    journal = Journal.create(folder, "experiment-demo")
    journal.append("start", name="demo", experiment="demo", parent=None, run=None, tags=process_tags() | tags)
    return journal


def status(folder: Path) -> str:
    return read_run(folder).status


def test_a_run_from_its_start_to_its_end(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert status(folder) == "stopped"  # nothing says that it lives
    journal = start(folder)
    assert status(folder) == "running"
    add_result(folder, "full 0.001", "finished", {"gain": 0.5, "retention": 0.9})
    add_result(folder, "full 0.0001", "finished", {"gain": 0.5, "retention": 1.0})
    one = read_run(folder)
    assert (one.status, one.done, one.total) == ("running", 2, 3)
    assert one.best is not None
    assert (one.best["arm"], one.best["learning_rate"]) == ("full", 1e-4)  # of equal gains the one that keeps more
    journal.append("end", status="KILLED")
    assert status(folder) == "stopped"
    add_result(folder, "control 0.001", "failed")
    journal.append("end", status="FAILED")
    assert status(folder) == "failed"  # the report was not written
    (folder / "report.html").touch()
    assert status(folder) == "failed"  # an arm failed
    add_result(folder, "control 0.001", "pruned")
    assert status(folder) == "finished"


def test_a_process_that_is_gone_or_elsewhere(tmp_path: Path) -> None:
    assert status(_started(tmp_path, "a-00000000", **DEAD)) == "stopped"
    assert status(_started(tmp_path, "b-00000000", host="another")) == "unknown"


def _started(root: Path, name: str, **tags: str) -> Path:
    folder = make_run(root, name)
    start(folder, **tags).close()
    return folder


def test_the_latest_journal_counts(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    old = start(folder)
    old.append("end", status="FAILED")
    os.utime(old.path, (1, 1))
    start(folder)
    assert status(folder) == "running"


@pytest.mark.parametrize(
    ("cards", "best"),
    [
        ({"full 0.001": {"new_nll_drop": 0.2}, "full 0.0001": {"new_nll_drop": 0.4}}, "full 0.0001"),
        ({"full 0.001": {"gain": float("nan")}, "full 0.0001": {"gain": -0.1}}, "full 0.0001"),
        ({"noise 0": {"gain": 0.0}}, "noise 0"),  # an arm that learns nothing; a model that was measured has no rate
        ({"full 0.001": {"retention": 1.0}}, ""),
        ({}, ""),
    ],
)
def test_the_best_arm(tmp_path: Path, cards: dict[str, dict[str, float]], best: str) -> None:
    assert arm_text(read_run(make_run(tmp_path, results=cards)).best) == best


def test_the_gains_are_those_of_the_scorecard() -> None:
    from experiments.desk import overview

    assert overview.GAINS == GAINS


@pytest.mark.parametrize(
    ("owner", "progress", "expected"),
    [
        (process_tags(), {"trials": {"complete": 2, "running": 1}, "limit": 4, "ended": ""}, ("running", 2, 4)),
        (None, {"trials": {"complete": 2, "lost": 1}, "limit": 4, "ended": ""}, ("stopped", 2, 4)),
        (process_tags() | DEAD, {"trials": {"complete": 2}, "limit": None, "ended": ""}, ("stopped", 2, None)),
        (None, {"trials": {"complete": 2, "failed": 1, "pruned": 1}, "limit": 4, "ended": "all 4"}, ("finished", 4, 4)),
        (None, {"trials": {"failed": 3}, "limit": 9, "ended": "stopped: 3 trials in a row failed"}, ("failed", 3, 9)),
        (process_tags() | {"host": "x"}, {"trials": {}, "limit": 4, "ended": ""}, ("unknown", 0, 4)),
        (None, {}, ("unknown", 1, None)),
    ],
    ids=["running", "stopped", "killed", "finished", "failed", "elsewhere", "before progress was kept"],
)  # fmt: skip
def test_a_study(tmp_path: Path, owner: Any, progress: Any, expected: tuple[str, int, int | None]) -> None:
    make_study(tmp_path, "table5", owner, **progress)
    make_run(tmp_path, "table5-007-seed1-0123abcd", {"full 0.001": {"gain": 0.3}})
    [one] = read_all(tmp_path)
    assert (one.kind, one.status, one.done, one.total) == ("study", *expected)
    assert one.best is not None
    assert one.best["scorecard"]["gain"]["value"] == 0.3


def test_the_best_of_a_study_is_a_mean_over_seeds(tmp_path: Path) -> None:
    """The luckiest seed of all gained .9. Of the last trial a seed is missing, so it has no mean yet."""
    study = make_study(tmp_path, "toy", trials={"complete": 2}, limit=3)
    write_text(study / "study.yaml", "name: toy\nseeds: [0, 1]\n")
    gains = {"000-seed0": 0.9, "000-seed1": 0.1, "001-seed0": 0.6, "001-seed1": 0.7, "002-seed0": 0.95}
    for name, gain in gains.items():
        make_run(tmp_path, f"toy-{name}-0123abcd", {"full 0.001": {"gain": gain, "retention": 1 - gain / 2}})
    (one,) = (found for found in read_all(tmp_path) if found.kind == "study")
    assert one.best is not None
    assert one.best["scorecard"] == {
        "gain": {"value": pytest.approx(0.65)}, "retention": {"value": pytest.approx(0.675)}
    }  # fmt: skip


def test_the_best_of_a_study_is_feasible(tmp_path: Path) -> None:
    """The trial that gained most forgot more than a constraint of the study allows."""
    gains = {"000": 0.9, "001": 0.6, "002": 0.7}
    for name, gain in gains.items():
        make_run(tmp_path, f"toy-{name}-0123abcd", {"full 0.001": {"gain": gain}})
    for outside, best in (([], 0.9), ([0], 0.7), ([0, 2], 0.6), ([0, 1, 2], None)):
        make_study(tmp_path, "toy", trials={"complete": 3}, limit=3, infeasible=outside)
        (one,) = (found for found in read_all(tmp_path) if found.kind == "study")
        assert (one.best and one.best["scorecard"]["gain"]["value"]) == best
        assert one.remark == ("" if best else "no trial is feasible")
    make_run(tmp_path, "toy-003-0123abcd", {"full 0.001": {"retention": 1.0}})  # feasible, of a study without a gain
    (one,) = (found for found in read_all(tmp_path) if found.kind == "study")
    assert (one.best, one.remark) == (None, "")


def test_a_measurement_from_its_start_to_its_end(tmp_path: Path) -> None:
    folder = make_measurement(tmp_path, "measure-0123abcd", "measure", {"a": {"retention": 0.9}, "b": None})
    assert read_measurement(folder).status == "stopped"  # nothing says that it lives
    journal = start(folder / "arms" / "b")
    one = read_measurement(folder)
    assert (one.kind, one.status, one.done, one.total) == ("measure", "running", 1, 2)
    assert one.best is not None
    assert one.best["arm"] == "a"  # no gain was measured
    journal.append("end", status="FAILED")
    (folder / "report.html").touch()
    assert read_measurement(folder).status == "failed"  # which does not stop the others
    make_measurement(tmp_path, "measure-0123abcd", "measure", {"b": {"retention": 1.1}})  # a later call, of b alone
    one = read_measurement(folder)
    assert (one.status, one.done, one.total, one.best and one.best["arm"]) == ("finished", 2, 2, "b")
    assert read_all(tmp_path) == [one]


def test_softening_shows_the_chosen_point_with_the_figures_that_it_reports(tmp_path: Path) -> None:
    cards: dict[str, Any] = {"alpha-0.5": {"gain": 0.5, "retention": 1.0}, "alpha-1": {"gain": 0.9, "retention": 0.8}}
    folder = make_measurement(tmp_path, "soften-0123abcd", "soften", cards)
    (folder / "report.html").touch()
    assert read_measurement(folder).best is None
    write_json(folder / "chosen.json", {"alpha": 0.5})
    write_json(folder / "figures.json", {"alpha-0.5": {"gain": {"value": 0.4}}})
    one = read_measurement(folder)
    assert (one.kind, one.status) == ("soften", "finished")
    assert arm_text(one.best) == "alpha-0.5"
    assert one.best is not None
    assert one.best["scorecard"] == {"gain": {"value": 0.4}}


@pytest.mark.parametrize(("name", "text"), [("chosen.json", '"alpha": 1'), ("figures.json", '"value": 0.9')])
def test_what_softening_chose_is_not_edited(tmp_path: Path, name: str, text: str) -> None:
    folder = make_measurement(tmp_path, "soften-0123abcd", "soften", {"alpha-0.5": {"gain": 0.5}})
    write_json(folder / "figures.json", {"alpha-0.5": {"gain": {"value": 0.4}}, "alpha-1": {"gain": {"value": 0.8}}})
    note = {"alpha": 0.5, "figures": file_digest(folder / "figures.json")}
    write_json(folder / "chosen.json", {**note, "digest": json_digest(note)})
    assert chosen_alpha(folder) == 0.5
    file = folder / name
    file.write_text(re.sub(text.partition(": ")[0] + r": [\d.]+", text, file.read_text(), count=1))
    with pytest.raises(DamagedError, match=r"chosen\.json or figures\.json was changed since `soften` wrote them"):
        read_measurement(folder)
    assert [one.status for one in read_all(tmp_path)] == ["unreadable"]


def test_a_result_of_another_run_is_not_shown(tmp_path: Path) -> None:
    """As of a folder that was copied: the name of the arm is the same, the data is not."""
    ours, theirs = (make_run(tmp_path, f"{name}-0123abcd") for name in ("ours", "theirs"))
    for run in (ours, theirs):
        write_json(run / "sources.json", {"0 sums": run.name})
    result = ArmResult("full", "full", 1e-3, "finished", scorecard={"gain": Estimate(0.5)})
    write_result(theirs / "arms" / "full-0.001", result)
    assert read_run(theirs).best is not None
    shutil.copytree(theirs / "arms", ours / "arms")
    with pytest.raises(DamagedError, match=r"result\.json is of a run with other settings or data than .*ours"):
        read_run(ours)
    with pytest.raises(DamagedError, match="is of a run with other settings or data"):
        read_result(ours / "arms" / "full-0.001" / "result.json", own=True)


def test_a_training_that_is_measured_has_no_sign_of_life(tmp_path: Path) -> None:
    folder = make_measurement(tmp_path, "callback-out", "callback", {"trained": None})
    assert read_measurement(folder).status == "unknown"
    make_measurement(tmp_path, "callback-out", "callback", {"trained": {"retention": 1.0}})
    assert read_measurement(folder).status == "finished"  # it has no report


def test_runs_of_trials_are_shown_when_asked_for(tmp_path: Path) -> None:
    make_study(tmp_path, "toy", trials={}, limit=2, ended="")
    for name in ("toy-000-0123abcd", "toy-001-seed3-0123abcd", "toy-0123abcd", "toys-000-0123abcd"):
        make_run(tmp_path, name)
    assert {one.folder.name for one in read_all(tmp_path)} == {"toy", "toy-0123abcd", "toys-000-0123abcd"}
    assert len(read_all(tmp_path, trials=True)) == 5


def test_the_latest_comes_first_and_a_broken_folder_hides_no_other(tmp_path: Path) -> None:
    for i, name in enumerate(("old-0123abcd", "new-0123abcd", "broken-0123abcd", "half-0123abcd")):
        folder = make_run(tmp_path, name)
        os.utime(folder / "config.yaml", (1_000_000_000 + i, 1_000_000_000 + i))
    write_text(tmp_path / "runs" / "broken-0123abcd" / "config.yaml", "a: [1")
    write_text(tmp_path / "runs" / "half-0123abcd" / "arms" / "full-1" / "result.json", '{"stat')
    found = read_all(tmp_path)
    assert [one.folder.name.split("-")[0] for one in found] == ["half", "broken", "new", "old"]
    assert [one.status for one in found] == ["unreadable", "unreadable", "stopped", "stopped"]


def test_an_empty_root(tmp_path: Path) -> None:
    assert read_all(tmp_path / "none") == list[Overview]()


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (300, "5 min"), (3 * 3600, "3 h"), (3 * 86_400, "3 d"), (-5, "0 s")]
)
def test_age(seconds: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    assert age(1_000_000 - seconds) == text


def test_a_result_that_was_changed_is_not_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    add_result(folder, "full 0.001", "finished", {"gain": 0.5})
    file = folder / "arms" / "full-0.001" / "result.json"
    values = read_json(file)
    write_json(file, values | {"digest": json_digest(values)})
    assert [one.status for one in read_all(tmp_path)] == ["stopped"]
    write_json(file, read_json(file) | {"scorecard": {"gain": {"value": 0.9}}})
    assert [one.status for one in read_all(tmp_path)] == ["unreadable"]
    with pytest.raises(DamagedError, match=r"result\.json was changed after it was written"):
        read_run(folder)


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_a_config_that_was_edited_is_not_that_of_the_run(name: str, tmp_path: Path) -> None:
    """Every shipped config reads back as the journal noted it; one other value of it does not."""
    config, folder = load_config(name), tmp_path / "demo-0123abcd"
    write_text(folder / "config.yaml", dump_yaml(config.to_dict()))
    assert own_config(folder)["seed"] == config.seed  # no journal
    journal = start(folder)
    journal.append("params", params=flatten({**config.to_dict(), "arms": []}))  # of a start before arms were added
    journal.append("params", params=flatten(config.to_dict()))
    assert own_config(folder)["seed"] == config.seed
    write_text(folder / "config.yaml", dump_yaml({**config.to_dict(), "seed": config.seed + 1}))
    with pytest.raises(ConfigError, match=r"config\.yaml was edited: .* demo-0123abcd ran with \(seed\)"):
        own_config(folder)
