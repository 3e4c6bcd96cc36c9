"""A study is opened by its config or by its name; one of another config or another program is refused."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest

from experiments.common.errors import ConfigError, StudyError
from experiments.studies.queue import Store
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.toy_study import open_store, quiet, toy_study, value

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_another_config_under_the_same_name_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    changed = Store(store.url, toy_study(seeds=[0, 1]))
    with pytest.raises(ConfigError, match="was started from another config"):
        changed.begin()
    Store(store.url, toy_study(retries=7, budget={"trials": 3})).begin()  # what does not change a trial may change
    assert Store(store.url, name="toy").config.retries == 7


@pytest.mark.parametrize("made", ["with trials", "with another aim"])
def test_a_study_of_another_program_is_not_gone_on_with(made: str, tmp_path: Path) -> None:
    """Optuna gives the study of a name, whoever made it: its trials would count as ours, and its aim too."""
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    foreign = optuna.create_study(
        storage=url, study_name="toy", direction="maximize" if made == "with trials" else "minimize"
    )
    if made == "with trials":
        foreign.add_trial(optuna.create_trial(value=99.0))
        with pytest.raises(StudyError, match=r"study 'toy' in \S+ was made by another program"):
            Store(url, name="toy")
    with pytest.raises(ConfigError, match=r"'toy' in \S+ was not made by this config: it aims to m\w+imize, and has "):
        Store(url, toy_study()).begin()
    assert "config" not in optuna.load_study(study_name="toy", storage=url).user_attrs


def test_a_trial_that_another_program_added_is_no_result(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.work(lambda number, picks, report: TrialOutcome([value(picks)]), quiet)
    Store(store.url, name="toy")  # trials without runs are ours too
    optuna.load_study(study_name="toy", storage=store.url).add_trial(optuna.create_trial(value=99.0))
    for again in (lambda: Store(store.url, name="toy"), lambda: Store(store.url, store.config).begin()):
        with pytest.raises(StudyError, match=r"'toy' in \S+ has trials that another program added: 6\. Their values"):
            again()


def test_a_study_opened_by_name_has_its_own_heartbeat(tmp_path: Path) -> None:
    open_store(tmp_path, heartbeat=600)
    storage = Store(f"sqlite:///{tmp_path / 'optuna.db'}", name="toy").storage
    assert (storage.heartbeat_interval, storage.grace_period) == (600, 1200)


def test_a_study_on_a_disk_for_reading_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of the tests may be root, who may write everywhere: the system's answer is planted."""
    store = open_store(tmp_path)
    lock = tmp_path / "optuna.db.lock"
    lock.unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert len(Store(store.url, name="toy").trials()) == 6
    assert not lock.exists()
