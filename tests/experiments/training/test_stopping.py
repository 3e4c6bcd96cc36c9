"""Ctrl-C and SIGTERM during training: the step ends, a checkpoint is saved, and the next start goes on from it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experiments.common.signals import sigterm_raises
from experiments.training.checkpoints import last_checkpoint
from experiments.training.stopping import ECHO, StopRequest, stops_after_step
from tests.helpers import engine, terminate_in_two_processes
from tests.helpers.launch import two_processes


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """A process in the background of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_acts_at_the_end(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    acted: list[int] = []
    before = signal.signal(number, lambda got, frame: acted.append(got))
    try:
        with stops_after_step() as asked:
            assert not asked
            signal.raise_signal(number)
            assert asked
            assert acted == []
        assert acted == [number]
        signal.raise_signal(number)  # as before the block
        assert acted == [number] * 2
    finally:
        signal.signal(number, before)


def test_the_second_signal_acts_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with sigterm_raises(), stops_after_step() as asked:
        signal.raise_signal(signal.SIGINT)
        assert "stopping after this step, with a checkpoint; once more stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # another one is noted
        assert asked.numbers == [signal.SIGINT, signal.SIGTERM]
        asked.numbers.clear()


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stops_after_step() as asked:
            signal.raise_signal(signal.SIGINT)
        assert not asked
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_of_several_processes_an_echo_is_no_second_signal() -> None:
    """A launcher and a scheduler both send it to each process; later ones act at once."""
    with stops_after_step(processes=2) as asked:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert asked.numbers == [signal.SIGINT] * 2
        asked.since -= ECHO
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        asked.numbers.clear()


def test_a_process_acts_on_what_another_one_was_asked() -> None:
    asked = StopRequest()
    asked.act()
    asked.numbers.append(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        asked.act()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_stop_after_the_same_step_and_go_on(rank: int, tmp_path: Path) -> None:
    """Only one of them gets SIGTERM, in step 3: both save step 4 and end with the code of it."""
    script = Path(terminate_in_two_processes.__file__)
    done = two_processes(script, tmp_path, rank)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"code-{index}").read_text() for index in range(2)] == ["143", "143"]
    assert last_checkpoint(tmp_path / "arm") == str(tmp_path / "arm" / "checkpoint-4")
    done = two_processes(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    logs, weights = torch.load(tmp_path / "outcome.pt", weights_only=False)
    assert sorted(logs) == [5, 6]
    whole = engine.train(engine.arm_config("control"), tmp_path / "whole")
    for name, weight in weights.items():
        torch.testing.assert_close(weight, whole.weights[name], rtol=1e-2, atol=2e-3, msg=name)


def test_in_a_thread_nothing_is_changed() -> None:
    found: list[StopRequest] = []

    def work() -> None:
        with stops_after_step() as asked:
            found.append(asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].handlers == {}


def test_an_interrupted_arm_saves_its_step_and_goes_on_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in step 3, which is no step of an evaluation."""
    whole = engine.train(engine.arm_config("control"), tmp_path / "whole")
    step, seen = engine.Hooks.__init__, list[int]()

    def interrupting(self: engine.Hooks, evaluate: object, record: object, log: object, **rest: object) -> None:
        def noting(number: int, logs: dict[str, float]) -> None:
            seen.append(number)
            if number == 3 and seen.count(3) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            log(number, logs)  # type: ignore[operator]

        step(self, evaluate, record, noting, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.Hooks, "__init__", interrupting)
    with pytest.raises(KeyboardInterrupt):
        engine.train(engine.arm_config("control"), tmp_path / "parts")
    assert seen[-1] in (3, 4)
    kept = seen[-1]
    assert (tmp_path / "parts" / f"checkpoint-{kept}").is_dir()
    resumed = engine.train(engine.arm_config("control"), tmp_path / "parts")
    assert seen[-1] == 6
    assert sorted(resumed.logs) == list(range(kept + 1, 7))
    for name, weight in whole.weights.items():
        assert (resumed.weights[name] == weight).all(), name
