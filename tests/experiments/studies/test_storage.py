"""The storage of a study: its URL, its folder, and no password in what leaves the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.common.errors import StudyError
from experiments.common.files import read_json
from experiments.studies.launch import run_study
from experiments.studies.queue import Store
from experiments.studies.report.table import export
from experiments.studies.report.write import write_study_report
from experiments.studies.storage import PROGRESS, note_progress, public_yaml, storage_url, study_folder
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.planted_study import TABLE5, synthetic_store
from tests.helpers.toy_study import open_store, toy_study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]
URL = "postgresql+psycopg://me:TOPSECRET@db.example:5432/studies"


def test_what_leaves_the_machine_has_no_password(tmp_path: Path) -> None:
    study = toy_study(storage=URL)
    assert "TOPSECRET" not in public_yaml(study)
    assert "postgresql+psycopg://me:***@db.example:5432/studies" in public_yaml(study)
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]}, report={})
    store.config = store.config.model_copy(update={"storage": URL})
    write_study_report(store, tmp_path, tmp_path / "report")
    files = [path for path in (tmp_path / "report").iterdir() if path.suffix != ".png"]
    assert len(files) == 4
    assert not any("TOPSECRET" in path.read_text() for path in files)
    own = tmp_path / "studies" / store.config.name
    own.mkdir(parents=True)
    (own / "study.yaml").write_text("what workers read")
    write_study_report(store, tmp_path, own)
    assert (own / "study.yaml").read_text() == "what workers read"


def test_progress_names_the_trials_that_are_outside_of_a_constraint(tmp_path: Path) -> None:
    """`control-llm runs` shows the best of the others."""
    store = open_store(tmp_path, budget={"trials": 3})
    store.work(lambda number, picks, report: TrialOutcome([0.0], {"kl <= 1": number - 1.0}), lambda text: None)
    note_progress(store, tmp_path)
    assert read_json(study_folder(tmp_path, "toy") / PROGRESS)["infeasible"] == [2]


def test_the_password_stays_in_a_file_of_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers need it; the study's database and an export do not."""
    url = f"sqlite:///{tmp_path}/studies.db"
    store = Store(url, toy_study(storage=URL))
    store.begin()
    assert "TOPSECRET" not in json.dumps(store.study.user_attrs)
    again = Store(url, name=store.config.name)
    assert again.config.storage == url  # the one that it was opened from, password and all
    export(store, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["study"]["storage"].startswith("postgresql+psycopg://me:***@")
    monkeypatch.setattr("experiments.studies.launch.work", lambda *_: "done")
    monkeypatch.setattr("experiments.tracking.tracker.code_diff", str)  # the diff of this test holds the password
    run_study(toy_study(storage=URL), tmp_path, storage=url, say=lambda text: None)
    (file,) = (tmp_path / "studies").rglob("study.yaml")
    assert "TOPSECRET" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path != file]
    assert [path for path in others if b"TOPSECRET" in path.read_bytes()] == []


@pytest.mark.parametrize("url", ["foo", "postgresql+psycopg://u:pw@127.0.0.1:port/x"])
def test_what_is_no_url_is_said_to_be_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(StudyError, match="not a database URL") as caught:
        storage_url(tmp_path, url)
    assert ":pw@" not in str(caught.value)


@pytest.mark.parametrize("name", ["what?", "%41", "{SCHEMA}", "a b"])
def test_the_storage_lies_in_a_root_of_any_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    Store(storage_url(root, None), toy_study()).begin()
    assert (root / "optuna.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
