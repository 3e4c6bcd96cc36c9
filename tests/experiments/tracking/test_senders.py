"""A journal is sent whole, also when its run is deleted in the store, and several can be one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.tracking.journal import PATTERN
from experiments.tracking.machine import process_tags
from experiments.tracking.store import DIED, TrackingStore
from experiments.tracking.sync import sync
from experiments.tracking.tracker import Tracker

pytestmark = pytest.mark.slow


def test_a_run_that_is_deleted_while_it_goes_on_is_made_anew_with_all_it_has(root: Path) -> None:
    """Also for those who know it by its old id, such as children that start later."""
    tracker = Tracker(root, "demo")
    with tracker.run("demo", params={"steps": 2}) as run:
        old = run.id
        run.log_metrics({"loss": 1.0}, 1)
        assert tracker.delivery.drain(20)
        tracker.client.delete_run(old)
        run.log_metrics({"loss": 2.0}, 2)
        assert tracker.delivery.drain(20)
        with tracker.run("arm", kind="arm", parent=old):
            pass
        tracker.client.delete_run(run.id)  # once more, with nothing left to write but the end
    found = {r.info.run_name: r for r in tracker.client.search_runs([tracker.experiment_id])}
    assert set(found) == {"demo", "arm"}
    assert found["demo"].info.run_id == run.id != old
    assert run.faults == 0
    assert (found["demo"].info.status, found["demo"].data.params) == ("FINISHED", {"steps": "2"})
    assert [m.value for m in tracker.client.get_metric_history(run.id, "loss")] == [1, 2]
    assert (found["arm"].info.status, found["arm"].data.tags["experiment"]) == ("FINISHED", "demo")
    assert tracker.client.get_run(old).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize("when", ["meanwhile", "before it goes on", "before it is sent again", "without its note"])
def test_an_experiment_that_was_deleted_comes_back_with_its_runs(root: Path, when: str) -> None:
    """MLflow marks its runs as deleted and brings them back with it: one that was made anew stood there twice."""
    tracker, folder = Tracker(root, "demo"), root / "runs" / "a"
    options: dict[str, Any] = {"folder": folder, "params": {"steps": 2}}
    with tracker.run("a", **options) as run:
        run.log_metrics({"loss": 1.0}, 1)
        with tracker.run("arm", kind="arm", parent=run.journal.run):
            pass
        assert tracker.delivery.drain(20)
        if when == "meanwhile":
            tracker.client.delete_experiment(tracker.experiment_id)
        run.log_metrics({"loss": 2.0}, 2)
    first = run.id
    if when != "meanwhile":
        tracker.client.delete_experiment(tracker.experiment_id)
    if when == "without its note":
        for note in folder.rglob("*.delivered.json"):
            note.unlink()
    if when == "before it goes on":
        with Tracker(root, "demo").run("a", run_id=first, **options):
            pass
    elif when != "meanwhile":
        sync([folder], root)
    found = {r.info.run_name: r for r in tracker.client.search_runs([tracker.experiment_id])}
    assert {name: one.info.run_id for name, one in found.items() if name == "a"} == {"a": first}
    assert len(tracker.client.search_runs([tracker.experiment_id])) == 2
    assert found["arm"].data.tags["parent"] == first
    assert [m.value for m in tracker.client.get_metric_history(first, "loss")] == [1, 2]
    assert found["a"].info.status == "FINISHED"


def run_trial(root: Path, notes: dict[str, str], fault: type[BaseException] | None = None) -> Tracker:
    """Track a trial, its experiment and its arm as one run, or go on with it. notes: ids of the runs, by kind."""
    tracker = Tracker(root, "study")

    def opened(kind: str, name: str, parent: str | None = None) -> Any:
        def note(run_id: str) -> None:
            notes[kind] = run_id

        options: dict[str, Any] = {"parent": parent, "joins": parent is not None, "run_id": notes.get(kind)}
        return tracker.run(name, kind=kind, folder=root / kind, note=note, params={kind: name}, **options)

    with opened("trial", "#0 rate=1") as trial, opened("experiment", "study-000", trial.journal.run) as experiment:
        with opened("arm", "full 1", experiment.journal.run) as arm:
            arm.log_new({"gain": 0.0}, 0)
            if fault:
                raise fault
            arm.log_new({"gain": 0.5}, 2)
        trial.log_new({"score": 1.5}, 2)
    return tracker


def the_run(tracker: Tracker) -> Any:
    (found,) = tracker.client.search_runs([tracker.experiment_id])
    return found


def check_whole(tracker: Tracker) -> None:
    found = the_run(tracker)
    tags, params = found.data.tags, found.data.params
    assert (found.info.run_name, found.info.status) == ("#0 rate=1", "FINISHED")
    assert (tags["kind"], tags["trial"], tags["experiment"]) == ("arm", "#0 rate=1", "study-000")
    assert not {"error", "mlflow.parentRunId"} & tags.keys()
    assert params == {"trial": "#0 rate=1", "experiment": "study-000", "arm": "full 1"}
    assert found.data.metrics == {"gain": 0.5, "score": 1.5}
    history = tracker.client.get_metric_history(found.info.run_id, "gain")
    assert [(m.step, m.value) for m in history] == [(0, 0.0), (2, 0.5)]


def test_parts_are_one_run_with_the_kind_of_the_innermost(root: Path) -> None:
    check_whole(run_trial(root, {}))


def test_parts_go_on_after_a_stop_in_the_same_run(root: Path) -> None:
    notes: dict[str, str] = {}
    with pytest.raises(KeyboardInterrupt):
        run_trial(root, notes, KeyboardInterrupt)
    assert the_run(Tracker(root, "study")).info.status == "KILLED"
    check_whole(run_trial(root, notes))
    assert len(list(root.rglob(PATTERN))) == 3


def test_parts_of_a_dead_process_end_with_their_run_and_go_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dead parts had not sent comes after the run has gone on, and does not end it again."""
    notes: dict[str, str] = {}
    dead = process_tags() | {"boot_id": "before the restart"}
    with monkeypatch.context() as patched:
        patched.setattr("experiments.tracking.tracker.process_tags", lambda: dead)
        patched.setattr("experiments.tracking.run.Run.close", lambda run, status: run.journal.close())
        with pytest.raises(KeyboardInterrupt):
            run_trial(root, notes, KeyboardInterrupt)
    tracker = Tracker(root, "study")
    assert tracker.reap() == [the_run(tracker).info.run_id]
    assert (the_run(tracker).info.status, the_run(tracker).data.tags["error"]) == ("KILLED", DIED)
    check_whole(run_trial(root, notes))
    assert Tracker(root, "study").reap() == []
    check_whole(tracker)


def test_parts_are_one_run_in_another_store_too(root: Path, tmp_path: Path) -> None:
    run_trial(root, {})
    other = f"sqlite:///{tmp_path}/other.db"
    first = sync([root], root, other)
    assert len(first) == 3
    assert sync([root], root, other) == first
    store = TrackingStore(root, other)
    (found,) = store.client.search_runs([store.experiment("study")])
    assert (found.info.status, found.data.tags["kind"], found.data.metrics["gain"]) == ("FINISHED", "arm", 0.5)


@pytest.mark.filterwarnings("ignore:MLflow. .*later")  # each of the three says so
def test_parts_of_a_run_that_the_store_did_not_see_come_later(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
        with pytest.warns(UserWarning, match="does not answer"):
            run_trial(root, {})
    sync([root], root)
    check_whole(Tracker(root, "study"))


def test_a_run_fails_with_its_part(root: Path) -> None:
    """An arm that fails does not end the code around it, which then ends its own run."""
    tracker = Tracker(root, "study")
    with tracker.run("seed 1") as run, tracker.run("full", kind="arm", parent=run.journal.run, joins=True) as arm:
        arm.fail("loss became NaN")
    found = the_run(tracker)
    assert (found.info.status, found.data.tags["error"]) == ("FAILED", "loss became NaN")


def test_compare_opens_on_the_figure_that_was_logged_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow takes the first metric of a run: that must not be the load of the machine."""
    monkeypatch.setattr("experiments.tracking.tracker.system_metrics", lambda: {"system/cpu_percent": 50.0})
    tracker = Tracker(root, "demo")
    with tracker.run("demo") as run:
        tracker._sample()
        run.log_new({"gain": 0.0}, 0)
        tracker._sample()
    logged = [list(e["values"]) for e, _ in run.journal.read() if e["event"] == "metrics"]
    assert logged == [["gain"], ["system/cpu_percent"]]
