"""Failed trials run again, from their start and under their old numbers; nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import StudyError
from experiments.runs.run import run_folder
from experiments.studies.again import queue_failed
from experiments.studies.trial import TrialFailed
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.toy_study import open_store, quiet, value

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_only_failed_trials_run_again_and_from_their_start(tmp_path: Path) -> None:
    store, begun, broken = open_store(tmp_path), list[int](), {1, 4}

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        begun.append(number)
        folder = run_folder(store.config.run_config(picks, number, 0), tmp_path)
        assert not folder.exists()  # nothing of a failed attempt is left
        folder.mkdir(parents=True)
        if number in broken:
            raise TrialFailed("the code changed")
        return TrialOutcome([value(picks)])

    store.work(run, quiet)
    assert [t.number for t in store.trials() if t.state == "failed"] == [1, 4]
    broken.remove(1)
    assert queue_failed(store, tmp_path) == [1, 4]
    assert [t.state for t in store.trials()].count("failed") == 0
    store.work(run, quiet)
    assert begun == [*range(6), 1, 4]
    [still] = [t for t in store.trials() if t.state == "failed"]
    assert (still.number, still.attempts, len(store.trials())) == (4, 2, 6)
    broken.remove(4)
    assert queue_failed(store, tmp_path) == [4]
    store.work(run, quiet)
    assert store.ended() == "all 6 cells of the grid are finished"
    with pytest.raises(StudyError, match="no trial of 'toy' has failed: leave out --failed"):
        queue_failed(store, tmp_path)
