"""A worker ends when the process that started it is gone or stopped, and only then."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.common.errors import StudyError
from experiments.common.progress import PLAIN
from experiments.common.signals import sigterm_raises
from experiments.studies import launch, workers
from experiments.studies.launch import keep_working, work
from experiments.studies.workers import PARENT, VISIBLE, ends_with_parent, worker_places, worker_starter


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


def test_a_worker_looks_at_its_parent_while_it_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Killed, the parent can end no worker: they went on unseen, and the next start added its own to them."""
    store = SimpleNamespace(config=SimpleNamespace(name="toy"), work=lambda *_: time.sleep(30))
    monkeypatch.setenv(PARENT, "999999999")
    with pytest.raises(SystemExit, match="143"), sigterm_raises():
        work(store, tmp_path, print)  # type: ignore[arg-type]


def test_workers_end_with_the_shell_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM reaches that one alone. It waits for them, so that their trials are marked as stopped."""
    seen: list[str] = []

    def start() -> SimpleNamespace:
        noting = {name: lambda name=name: seen.append(name) for name in ("terminate", "wait")}
        return SimpleNamespace(poll=lambda: None, **noting)

    monkeypatch.setattr(launch.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"), sigterm_raises():
        keep_working(SimpleNamespace(), start, 2)  # type: ignore[arg-type]
    assert seen == ["terminate"] * 2 + ["wait"] * 2


def test_a_worker_knows_its_parent_and_whether_others_share_its_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    popen = lambda command, env: SimpleNamespace(env=env, poll=lambda: None)  # noqa: E731
    monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=popen))
    for count in (1, 2):
        environment = worker_starter(tmp_path / "study.yaml", tmp_path, "sqlite://", [""] * count)().env
        assert environment[PARENT] == str(os.getpid())
        assert (PLAIN in environment) == (count == 2)
        assert environment.get(VISIBLE) == os.environ.get(VISIBLE)


def test_each_worker_has_its_gpu_and_one_that_is_replaced_leaves_it_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended: set[int] = set()

    def popen(command: list[str], env: dict[str, str]) -> SimpleNamespace:
        number = next(numbers)
        return SimpleNamespace(gpu=env[VISIBLE], number=number, poll=lambda: -9 if number in ended else None)

    numbers = itertools.count()
    monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=popen))
    start = worker_starter(tmp_path / "study.yaml", tmp_path, "sqlite://", ["0", "3", "0", "3"])
    first = [start() for _ in range(4)]
    assert sorted(worker.gpu for worker in first) == ["0", "0", "3", "3"]
    for worker in first:
        ended.add(worker.number)
        assert start().gpu == worker.gpu


@pytest.mark.parametrize(
    ("visible", "devices", "per_device", "places"),
    [
        (None, "auto", 1, ["0", "1", "2", "3"]),
        (None, "0,2-3", 1, ["0", "2", "3"]),
        (None, "1", 3, ["1", "1", "1"]),
        ("5,7,GPU-8a,9", "auto", 1, ["5", "7", "GPU-8a", "9"]),  # numbers count what this process sees
        ("5,7,GPU-8a,9", "2,0", 2, ["GPU-8a", "5", "GPU-8a", "5"]),
    ],
)
def test_places_of_workers(
    visible: str | None, devices: str, per_device: int, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible:
        monkeypatch.setenv(VISIBLE, visible)
    assert worker_places(devices, per_device) == places


@pytest.mark.parametrize(
    ("count", "devices", "per_device", "reason"),
    [
        (0, "auto", 1, "devices=auto: torch sees no GPU on this machine: leave it out"),
        (4, "4", 1, "devices=4: there is no GPU 4: give numbers from 0 to 3"),
        (4, "0-4", 1, "devices=0-4: there is no GPU 4"),
        (4, "gpu0", 1, "devices=gpu0: give numbers of GPUs, such as 0,2 or 0-3, or auto"),
        (4, "-1", 1, "devices=-1: give numbers of GPUs"),
        (4, "1,1", 1, "devices=1,1: name each GPU once"),
        (4, "3-1", 1, "devices=3-1: name each GPU once, and the lower end of a range first"),
        (4, "0", 0, "per-device=0: give the number of workers on each GPU, 1 or more"),
    ],
)
def test_places_that_cannot_be(
    count: int, devices: str, per_device: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    with pytest.raises(StudyError, match=reason):
        worker_places(devices, per_device)
