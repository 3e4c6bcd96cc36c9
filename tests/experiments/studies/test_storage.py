"""The storage of a study: its URL, its folder, and no password in what leaves the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.errors import StudyError
from experiments.studies.queue import Store
from experiments.studies.report.write import write_study_report
from experiments.studies.storage import public_yaml, storage_url
from tests.helpers.planted_study import TABLE5, synthetic_store
from tests.helpers.toy_study import toy_study

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
