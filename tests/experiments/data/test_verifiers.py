"""Verifiers: a reply never runs as code, and an error of a verifier is a wrong answer."""

from __future__ import annotations

import signal
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from experiments.data.items import Item, NewTask
from experiments.data.verifiers import LONGEST, SECONDS, RunsReply, guarded, runs_replies, short

ENTRY = {"question": "how many?", "answer": "3", "metadata": {"terms": ["1 + 2"]}}


def evaluates(answer: str, entry: dict[str, Any]) -> float:
    return float(eval(answer) == 3)


def compiles(answer: str, entry: dict[str, Any]) -> float:
    scope: dict[str, Any] = {}
    exec(compile(f"value = {answer}", "reply", "exec"), scope)
    return float(scope["value"] == 3)


def hides_errors(answer: str, entry: dict[str, Any]) -> float:
    try:
        return evaluates(answer, entry)
    except Exception:
        return 0.0


def starts_a_shell(answer: str, entry: dict[str, Any]) -> float:
    import subprocess

    return float(subprocess.run(f"echo {answer}", shell=True, check=False).returncode == 0)


@pytest.mark.parametrize("scorer", [evaluates, compiles, hides_errors, starts_a_shell])
def test_a_reply_never_runs(scorer: Any, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    payload = f"$(touch {mark})" if scorer is starts_a_shell else f"__import__('pathlib').Path({str(mark)!r}).touch()"
    assert runs_replies(scorer, ENTRY)
    task = NewTask("t", (Item("how many?", "3"),), guarded(scorer))
    assert not task.correct(payload, task.test[0])
    assert not mark.exists()
    if scorer is not hides_errors:
        with pytest.raises(RunsReply, match="may not run a reply"):
            guarded(scorer)(payload, ENTRY)


def test_the_generators_own_texts_may_run() -> None:
    def computes(answer: str, entry: dict[str, Any]) -> float:
        return float(answer == str(eval(entry["metadata"]["terms"][0])))

    assert not runs_replies(computes, ENTRY)
    assert guarded(computes)("3", ENTRY) == 1.0
    assert guarded(computes)("1 + 2", ENTRY) == 0.0


def test_code_outside_of_a_check_runs_as_ever() -> None:
    guarded(lambda answer, entry: 1.0)("x", ENTRY)
    assert eval("1 + 1") == 2


@pytest.mark.parametrize("error", [ValueError, KeyError, OverflowError, RecursionError, ZeroDivisionError])
def test_an_error_of_a_verifier_is_a_wrong_answer(error: type[Exception]) -> None:
    def fails(answer: str, entry: dict[str, Any]) -> float:
        raise error("this reply")

    for scorer in (fails, guarded(fails)):
        assert not NewTask("t", (Item("q", "a"),), scorer).correct("{}", Item("q", "a"))


def test_the_machines_faults_are_no_answers() -> None:
    def full(answer: str, entry: dict[str, Any]) -> float:
        raise MemoryError("no memory")

    with pytest.raises(MemoryError, match="no memory"):
        NewTask("t", (Item("q", "a"),), full).correct("b", Item("q", "a"))


def swallows(answer: str, entry: dict[str, Any]) -> float:
    while True:
        try:
            while answer:
                pass
        except:  # noqa: E722 - as some verifiers have it
            answer = ""
            return 0.0


def counts(answer: str, entry: dict[str, Any]) -> float:
    return float(Fraction(answer) == 3)  # of 1e999999999 it computes all digits


def loops(answer: str, entry: dict[str, Any]) -> float:
    while True:
        pass


@pytest.mark.parametrize("scorer", [swallows, counts, loops])
def test_a_check_without_end_is_a_wrong_answer(scorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.verifiers.SECONDS", 0.1)
    before, start = signal.getsignal(signal.SIGVTALRM), time.process_time()
    assert guarded(scorer)("1e999999999", ENTRY) == 0.0
    assert time.process_time() - start < SECONDS
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_the_time_that_is_over_stops_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.verifiers.SECONDS", 0.05)
    assert guarded(lambda answer, entry: 1.0)("3", ENTRY) == 1.0
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass


def test_other_threads_check_too() -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(guarded(counts)("3", ENTRY)))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_a_reply_far_longer_than_the_answer_is_not_checked() -> None:
    def never(answer: str, entry: dict[str, Any]) -> float:
        raise AssertionError("it was checked")

    assert short(never)("9" * (LONGEST + 3), ENTRY) == 0.0
    long = {**ENTRY, "answer": "9" * LONGEST}
    assert short(counts)("3" + " " * (LONGEST - 1), ENTRY) == 1.0
    with pytest.raises(AssertionError, match="it was checked"):
        short(never)("9" * (2 * LONGEST), long)
