"""Watching, starting and stopping a run from another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.common.errors import ConfigError, RunError, Stopped
from experiments.config import parse_config
from experiments.desk import watch as module
from experiments.desk.live import Follower, Live
from experiments.desk.watch import start, stop, watch, watch_async
from experiments.runs.run import run_experiment
from tests.helpers.live_run import begin_arm, log, make_live_run
from tests.helpers.small_run import small_config, small_values


def ending(monkeypatch: pytest.MonkeyPatch, *after: Callable[[], object]) -> None:
    """Each pause of the watching does the next of these, the last of which ends it."""
    steps = iter(after)

    async def pause(seconds: float) -> None:
        next(steps)()

    monkeypatch.setattr("experiments.desk.watch.time.sleep", lambda seconds: next(steps)())
    monkeypatch.setattr("experiments.desk.watch.asyncio.sleep", pause)


def test_it_shows_each_look_and_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_live_run(tmp_path)
    arm, seen = begin_arm(folder, "full-0.001"), list[int]()
    run = module.Journal(next(folder.glob("journal-*")))
    ending(
        monkeypatch,
        lambda: log(arm, {1: {"loss": 3.0}}, seconds=1),
        lambda: run.append("end", status="KILLED"),
    )
    watch(folder.name, tmp_path, show=lambda live: seen.append(live.arms[0].step))
    assert seen == [0, 1, 1]


def test_in_a_shell_a_line_is_written_when_it_says_something_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_live_run(tmp_path)
    run = module.Journal(next(folder.glob("journal-*")))
    ending(monkeypatch, lambda: None, lambda: run.append("end", status="KILLED"))
    watch(folder.name, tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        f"{folder.name}: running, 0 of 3 arms done",
        f"{folder.name}: stopped, 0 of 3 arms done",
    ]


def test_an_interrupt_ends_the_watching_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    folder = make_live_run(tmp_path)
    ending(monkeypatch, interrupt)
    watch(folder.name, tmp_path)
    assert "no longer watched; it goes on" in capsys.readouterr().out
    assert Follower(folder.name, tmp_path).look().running


@pytest.mark.parametrize("awaits", [False, True])
@pytest.mark.parametrize("how", ["interrupted", "stopped"])
def test_in_a_notebook_both_end_the_cell_with_a_line(
    how: str, awaits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next line of the cell would go on without the run, or find another process at work on it."""

    def interrupt() -> None:
        raise asyncio.CancelledError if awaits else KeyboardInterrupt

    def look() -> None:
        given = (folder.name, tmp_path, 2.0, lambda live: None)
        if not awaits:
            return watch(*given)
        with ThreadPoolExecutor() as other:  # in this thread the tests in a browser may have left a loop
            other.submit(asyncio.run, watch_async(*given)).result()

    folder = make_live_run(tmp_path)
    run = module.Journal(next(folder.glob("journal-*")))
    monkeypatch.setattr(module, "_in_notebook", lambda: True)
    ending(monkeypatch, interrupt if how == "interrupted" else lambda: run.append("end", status="KILLED"))
    lines = {"interrupted": "no longer watched; it goes on", "stopped": "with a checkpoint; the same cell goes on"}
    with pytest.raises(Stopped, match=lines[how]) as caught:
        look()
    assert caught.value._render_traceback_() == [str(caught.value)]
    if how == "stopped":
        look()  # it does not run any more: shown, and no more


def test_what_does_not_run_here_is_not_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_live_run(tmp_path)
    module.Journal(next(folder.glob("journal-*"))).append("start", tags={"host": "another", "pid": "1"})
    with pytest.raises(RunError, match="does not run on this machine: there is nothing to stop"):
        stop(folder, tmp_path)
    with pytest.raises(ConfigError, match="every=0: give the seconds"):
        watch(folder, tmp_path, every=0)


@pytest.mark.slow
def test_a_run_is_started_watched_stopped_and_goes_on(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process is a real one. It is stopped after its first evaluation and continued here."""
    values = small_values(base, training={"steps": 100, "batch_size": 2, "warmup_steps": 0})
    values["arms"], values["evaluation"]["every"] = values["arms"][:1], 10
    config = parse_config(values)
    folder = start(config, tmp_path)
    assert f"run {tmp_path}/started/{folder.name}.yaml" in capsys.readouterr().out
    looks: list[Live] = []

    def show(live: Live) -> None:
        looks.append(live)
        if live.arms[0].status == "running" and live.arms[0].step > 10:
            stop(folder, tmp_path)

    watch(folder, tmp_path, every=0.1, show=show)
    assert looks[-1].overview.status == looks[-1].arms[0].status == "stopped"
    assert 10 < looks[-1].arms[0].step < 100
    assert looks[-1].arms[0].last("retention") is not None
    said: list[str] = []
    (result,) = run_experiment(config, tmp_path, say=said.append).results
    assert (result.status, result.steps) == ("finished", 100)
    assert any("continues from checkpoint-" in line for line in said)


def test_a_second_start_keeps_what_the_first_one_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says its own reason, not that of the first."""

    def begin(words: list[str], stdout: Any, **options: Any) -> Any:
        stdout.write(b"error: " + text)
        stdout.flush()
        return SimpleNamespace(poll=lambda: 2, returncode=2)

    monkeypatch.setattr("experiments.desk.watch.subprocess.Popen", begin)
    for text in (b"no memory\n", b"another process is running it\n"):
        with pytest.raises(RunError, match=f"ended before it began: {text.decode().strip()}$"):
            start(small_config("m"), tmp_path)
    (log,) = (tmp_path / "started").glob("*.log")
    assert log.read_text() == "error: no memory\nerror: another process is running it\n"


@pytest.mark.slow
def test_a_run_that_cannot_begin_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the run ended before it began: .*no such model"):
        start(small_config(str(tmp_path / "no such model")), tmp_path)
