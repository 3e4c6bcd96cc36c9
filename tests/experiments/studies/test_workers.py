"""A worker ends when the process that started it is gone, and only then."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.common.progress import PLAIN
from experiments.studies import workers
from experiments.studies.workers import PARENT, ends_with_parent, worker_starter
from experiments.tracking.machine import sigterm_raises


@pytest.fixture(autouse=True)
def _short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "POLL", 0.01)


def test_a_worker_whose_parent_is_gone_ends_as_by_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT, "999999999")
    with pytest.raises(SystemExit, match="143"), sigterm_raises(), ends_with_parent():
        time.sleep(30)


@pytest.mark.parametrize("parent", ["", str(os.getppid())])
def test_a_worker_with_its_parent_and_any_other_process_go_on(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT, parent)
    with sigterm_raises(), ends_with_parent():
        time.sleep(0.1)


def test_a_worker_knows_its_parent_and_whether_others_share_its_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    popen = lambda command, env: env  # noqa: E731
    monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=popen))
    for count in (1, 2):
        environment = worker_starter(tmp_path / "study.yaml", tmp_path, "sqlite://", count)()
        assert environment[PARENT] == str(os.getpid())
        assert (PLAIN in environment) == (count == 2)
