"""Check replies in processes that may open no file, no connection and no process: Linux's seccomp.

A server process imports the verifier. It forks a process for each reply, which gives up its rights and checks it. So a
reply that runs as code can change nothing outside of its own check. It can still call itself right.
"""

from __future__ import annotations

import importlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from experiments.common.commands import own_python
from experiments.common.errors import MachineError
from experiments.common.machine_faults import of_the_machine
from experiments.data.rights import give_up_rights

SECONDS = 10.0  # of the processor, for one reply; it is wrong if its check takes longer, on a busy machine too
PATIENCE = 30  # so many times longer a check may wait for a processor
LOOKS = 10  # at a check in each of these times, to see whether it sleeps
MEMORY = 4 << 30  # bytes of address space of a check
SCORE = struct.Struct("d")
LONGEST = 4096  # bytes of a result: a pipe takes so many at once
ROUNDS = 50  # checks of one reply, each after modules were imported that the one before asked for
# modules of Python's own library that do more than define when they are imported: print, open a window, run tests
ACTING = {"antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"}
LIBRARY = sys.stdlib_module_names - ACTING


class Isolated:
    """A verifier in a process of its own; called as the verifier itself, one reply at a time.

    scorer: can be pickled. If it has a method `ready`, that imports what it needs; others are tried with the answer.
    packages, an attribute of it: packages that it needs itself, whose modules are imported when a check needs them.
    modules, another: those that replies may import besides Python's own library, with the packages around them.
    seconds, memory: limits of one reply, seconds of the processor, memory in bytes.
    """

    def __init__(self, scorer: Any, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.scorer, self.seconds, self.memory = pickle.dumps(scorer), seconds, memory
        self.lock = threading.Lock()
        self.server: subprocess.Popen[bytes] | None = None

    def __call__(self, answer: str, entry: dict[str, Any]) -> float:
        """Return the score of a reply; 0 if its check fails or takes too long. Raises MachineError."""
        with self.lock:
            if self.server is None or self.server.poll() is not None:
                self.server = self._start(entry)
            try:
                _send(self.server.stdin, pickle.dumps((answer, entry)))
                return float(SCORE.unpack(self.server.stdout.read(SCORE.size))[0])  # type: ignore[union-attr]
            except (OSError, struct.error):
                raise MachineError(
                    "the process that checks replies has ended, has no memory, or could not give up its rights: this "
                    "says nothing about the replies. Run the same command again when the cause is gone"
                ) from None
            except BaseException:  # Ctrl-C: the score on its way would be taken for that of the next reply
                _end(self.server)
                self.server = None
                raise

    def _start(self, entry: dict[str, Any]) -> subprocess.Popen[bytes]:
        server = subprocess.Popen(
            own_python(__name__),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C lets a step of training end, with its evaluation; it would end this one at once
            env={"PYTHONPATH": os.pathsep.join(sys.path)},  # no tokens, no passwords
        )
        weakref.finalize(self, _end, server)
        _send(server.stdin, self.scorer)
        _send(server.stdin, pickle.dumps((entry, self.seconds, self.memory)))
        return server


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer each (answer, entry) with its score, until the requests end."""
    scorer, (entry, seconds, memory) = (pickle.loads(_receive(requests)) for _ in range(2))
    if hasattr(scorer, "ready"):  # it imports what it needs; the processes without rights cannot
        scorer.ready()  # if it fails, this process ends: each reply would be wrong
    else:
        with _passed_over(str(entry["answer"])):
            scorer(str(entry["answer"]), entry)
    while request := _receive(requests):
        replies.write(SCORE.pack(_checked(scorer, seconds, memory, *pickle.loads(request))))
        replies.flush()


def _checked(scorer: Any, seconds: float, memory: int, answer: str, entry: dict[str, Any]) -> float:
    """Fork, check the reply there, and return its score. Raises MemoryError if the system ends the check.

    A library that imports a part of itself only when it is needed (`datetime.strptime`) cannot do so without rights,
    and would call a right reply wrong. So modules that a check asks for are imported, and it is made again: those of
    `scorer.packages` here, and others, for which a reply that runs as code can ask too, in the process of its check
    alone, before that gives up its rights.
    """
    tried: set[str] = set()
    for left in reversed(range(ROUNDS)):
        own = {name for name in tried if not _is_of(name, scorer, "packages")}
        score, asked = _forked(scorer, seconds, memory, answer, entry, own)
        wanted = {name for name in asked if _may_ask(name, scorer)}
        if wanted <= tried or not left:
            break
        _import(name for name in wanted - tried if _is_of(name, scorer, "packages"))
        tried |= wanted
    return score


def _import(names: Iterable[str]) -> None:
    for name in sorted(names):
        with _passed_over():  # an optional one that is not there
            importlib.import_module(name)


def _may_ask(name: str, scorer: Any) -> bool:
    """Whether a module is imported if a check asks for it; not `unittest.__main__`, which runs as a program."""
    known = name.partition(".")[0] in LIBRARY or any(_is_of(name, scorer, kind) for kind in ("packages", "modules"))
    return known and not name.endswith("__main__")


def _is_of(name: str, scorer: Any, kind: str) -> bool:
    """Whether a module is in a package of the scorer's `packages` or `modules`."""
    return name.partition(".")[0] in {one.partition(".")[0] for one in getattr(scorer, kind, ())}


@contextmanager
def _passed_over(given: str = "") -> Iterator[None]:
    """Pass over an error in the block, but for one of the machine, such as too many open files.

    After that one right replies would be wrong, for lack of a module. given: see `of_the_machine`.
    """
    try:
        yield
    except Exception as error:
        if of_the_machine(error, given):
            raise


class Wanted:
    """Notes which modules a check was to import and may ask for; first in `sys.meta_path` it finds none."""

    def __init__(self, scorer: Any) -> None:
        self.scorer, self.names = scorer, set[str]()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if _may_ask(name, self.scorer):
            self.names.add(name)


def _scored(scorer: Any, answer: str, entry: dict[str, Any]) -> bytes:
    """Return the score of a reply as bytes, and after it the modules that were missing for it."""
    wanted = Wanted(scorer)
    sys.meta_path.insert(0, wanted)
    score = 0.0
    try:
        score = scorer(answer, entry)
    except Exception:
        if not wanted.names:
            raise
    return SCORE.pack(score) + " ".join(sorted(wanted.names)).encode()[: LONGEST - SCORE.size]


def _forked(
    scorer: Any, seconds: float, memory: int, answer: str, entry: dict[str, Any], modules: Iterable[str]
) -> tuple[float, frozenset[str]]:
    """Return the score of a reply, and the names of modules that its check could not import. modules: it has these.

    What the check says first, after it gave up its rights, are the seconds that it took until then.
    """
    result, end = os.pipe()
    child = os.fork()
    if not child:
        try:
            _import(modules)
            begun = time.process_time()
            give_up_rights(end, seconds, memory)
            os.write(end, SCORE.pack(begun))
            os.write(end, _scored(scorer, answer, entry))
        finally:
            os._exit(0)
    os.close(end)
    ready = _next(result, SCORE.size, seconds)
    if not ready:
        _ended(child)
        raise MemoryError  # no memory, no filter of system calls, no processor: no reply has been looked at
    said = _next(result, LONGEST, seconds, child)
    os.close(result)
    if said == b"":  # it broke down, or was killed
        status, used = _ended(child)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and used < SCORE.unpack(ready)[0] + seconds:
            raise MemoryError  # a reply can send no signal, and its last limit of time comes later
        return 0.0, frozenset()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    score, names = (said or b"")[: SCORE.size], (said or b"")[SCORE.size :].decode(errors="replace").split()
    return float(SCORE.unpack(score)[0]) if len(score) == SCORE.size else 0.0, frozenset(names)


def _next(pipe: int, size: int, seconds: float, child: int = 0) -> bytes | None:
    """Return what a check writes next, empty if it ended; None if it writes nothing for too long.

    A scheduler that suspends the job, or Ctrl-Z, stops both processes and not the clock: that is one wait of many.
    child: a process that may sleep for as long as it may work.
    """
    asleep = 0
    for _ in range(PATIENCE * LOOKS):
        if select.select([pipe], [], [], seconds / LOOKS)[0]:
            return os.read(pipe, size)
        asleep += child > 0 and _sleeps(child)
        if asleep > LOOKS:
            break
    return None


def _sleeps(child: int) -> bool:
    """Whether a process waits for a time or a lock, and not for a processor, a disk or its memory."""
    with suppress(OSError):
        return Path(f"/proc/{child}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "S"
    return False


def _ended(child: int) -> tuple[int, float]:
    """Return the status of a child that closed its pipe, and its seconds of the processor; end one that goes on."""
    for _ in range(100):
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage.ru_utime + usage.ru_stime
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 0, 0.0


def _send(pipe: Any, message: bytes) -> None:
    pipe.write(struct.pack("Q", len(message)) + message)
    pipe.flush()


def _receive(pipe: BinaryIO) -> bytes:
    """Return the next message; empty at the end."""
    head = pipe.read(8)
    return pipe.read(struct.unpack("Q", head)[0]) if len(head) == 8 else b""


def _end(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.communicate()


if __name__ == "__main__":
    scores = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # modules may print when they are imported
    serve(sys.stdin.buffer, scores)
