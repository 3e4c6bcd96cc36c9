"""URLs that name no storage are answered, without the password."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.errors import ConfigError, StudyError
from experiments.studies.locks import shown
from experiments.studies.queue import Store
from tests.helpers.toy_study import (
    open_store,
    toy_study,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_storages_that_are_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(StudyError, match=r"no study 'tyo' in .*did you mean 'toy'"):
        Store(store.url, name="tyo")
    (tmp_path / "broken.db").write_text("no database" * 100)
    with pytest.raises(StudyError, match=r"broken.db cannot be used"):
        Store(f"sqlite:///{tmp_path / 'broken.db'}", toy_study())
    with pytest.raises(StudyError, match="cannot be used"):
        Store("postgresql+psycopg://127.0.0.1:1/none", toy_study())
    assert shown("postgresql+psycopg://me:secret@host/db") == "postgresql+psycopg://me:***@host/db"
    with pytest.raises(StudyError, match="has no budget of trials"):
        store.add_trials(3)
    with pytest.raises(ConfigError, match="must be 1 to 100000, but got -5"):
        store.add_trials(-5)
    Store(store.url, toy_study(name="made"))  # killed before `begin`
    with pytest.raises(StudyError, match="study 'made' was ended before it had begun: `study CONFIG` begins it"):
        Store(store.url, name="made")
