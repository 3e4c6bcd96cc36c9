"""A journal is sent whole, also when its run is deleted in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

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
