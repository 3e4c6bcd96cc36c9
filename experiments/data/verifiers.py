"""Check replies with a generator's own verifier, in bounded time, and never run a reply as code."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.data.items import Scorer

PROBES = ("x", "1", "[1]")  # replies that show what a verifier does with them
PROCESSES = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen")

LONGEST = 10_000  # characters of a reply besides twice those of the answer; some verifiers are quadratic
SECONDS = 2.0  # of the processor, for one reply


class RunsReply(Exception):
    """A verifier that wants to run text which is not the generator's own."""


class TooLong(BaseException):
    """A check took too long. Verifiers that catch any Exception do not catch it."""


class _Call(threading.local):
    """The verifier call of a thread.

    own: texts that it may run; None outside of a call. stopped: it wanted others. limited: its time is limited.
    """

    own: frozenset[str] | None = None
    stopped = limited = False


_call = _Call()


def guarded(scorer: Scorer) -> Scorer:
    """Return a verifier that raises RunsReply in place of running a reply as code, or of starting a process.

    The generator's own texts (its answer, its metadata) may run: some verifiers compute the answer from them. A reply
    is wrong if its check takes longer than SECONDS.
    """
    return functools.partial(_limited, scorer)


def short(scorer: Scorer) -> Scorer:
    """Return a verifier that calls replies wrong that are far longer than the answer. It does not look at them."""
    return functools.partial(_short, scorer)


def runs_replies(scorer: Scorer, entry: Mapping[str, Any]) -> bool:
    """Whether a verifier runs replies as code. Tries it with a few replies, and runs none of them."""
    return any(_stops(scorer, reply, entry) for reply in (*PROBES, str(entry["answer"])))


def _short(scorer: Scorer, answer: str, entry: dict[str, Any]) -> float:
    return 0.0 if len(answer) > LONGEST + 2 * len(str(entry["answer"])) else scorer(answer, entry)


def _limited(scorer: Scorer, answer: str, entry: dict[str, Any]) -> float:
    try:
        with _time_limit():
            return _guarded(scorer, answer, entry)
    except TooLong:
        return 0.0


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Raise TooLong in the block after SECONDS of the processor. No limit outside of the main thread, and on Windows.

    The timer counts the work of this process: a busy machine makes no answer wrong. It repeats, in case a verifier
    catches what it raises.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _stop)
    _call.limited = True
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS / 10)
    try:
        yield
    finally:
        _call.limited = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _stop(number: int, frame: Any) -> None:
    if _call.limited:
        raise TooLong


def _guarded(scorer: Scorer, answer: str, entry: dict[str, Any]) -> float:
    _add_hook()
    _call.own, _call.stopped = frozenset(_texts(entry)), False
    try:
        return scorer(answer, entry)
    finally:
        _call.own = None


def _stops(scorer: Scorer, reply: str, entry: Mapping[str, Any]) -> bool:
    try:
        _guarded(scorer, reply, dict(entry))
    except Exception:  # a probe is no answer; what counts is what the verifier wanted to run
        return _call.stopped
    return _call.stopped


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


@functools.cache
def _add_hook() -> None:
    """Let Python report what it compiles (PEP 578). A hook stays until the process ends, and acts in calls alone."""
    sys.addaudithook(_watch)


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _call.own is None:
        return
    if event in PROCESSES or (event == "compile" and not (_is_file(args[1]) or _text(args[0]) in _call.own)):
        _call.stopped = True
        raise RunsReply(f"{event}: a verifier may not run a reply as code")


def _is_file(name: Any) -> bool:
    """Whether code comes from a file: a module that the verifier imports."""
    return isinstance(name, str) and Path(name).is_file()


def _text(source: Any) -> str | None:
    """The text that is compiled, as `eval` was given it; None for syntax trees and for code objects."""
    return source.decode("utf-8", "replace") if isinstance(source, bytes) else source
