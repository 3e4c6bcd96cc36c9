"""Check replies in processes that may open no file, no connection and no process: Linux's seccomp.

A server process imports the verifier. It forks a process for each reply, which gives up its rights and checks it. So a
reply that runs as code can change nothing outside of its own check. It can still call itself right.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import pickle
import platform
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from experiments.common.commands import own_python
from experiments.common.errors import MachineError
from experiments.common.machine_faults import of_the_machine

SECONDS = 10.0  # of the processor, for one reply; it is wrong if its check takes longer, on a busy machine too
PATIENCE = 30  # so many times longer a check may wait, for a lock that nobody releases or for a processor
MEMORY = 4 << 30  # bytes of address space of a check
SCORE = struct.Struct("d")
LONGEST = 4096  # bytes of a result: a pipe takes so many at once
READY = b"+"  # what a check says first, after it gave up its rights: a reply can say nothing before it
ROUNDS = 50  # checks of one reply, each after modules were imported that the one before asked for
# system calls that a check needs for memory, time and its result, by machine: (audit architecture, numbers)
ALLOWED = {
    # read, write, mmap, mprotect, munmap, brk, rt_sigreturn, rt_sigprocmask, sched_yield, mremap, madvise, exit,
    # gettimeofday, futex, clock_gettime, exit_group, getrandom
    "x86_64": (0xC000003E, (0, 1, 9, 10, 11, 12, 15, 14, 24, 25, 28, 60, 96, 202, 228, 231, 318)),
    "aarch64": (0xC00000B7, (63, 64, 222, 226, 215, 214, 139, 135, 124, 216, 233, 93, 169, 98, 113, 94, 278)),
}
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # of prctl
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of the filter
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: the call returns EPERM


def supported() -> bool:
    """Whether processes without rights exist here."""
    return sys.platform == "linux" and platform.machine() in ALLOWED


class Isolated:
    """A verifier in a process of its own; called as the verifier itself, one reply at a time.

    scorer: can be pickled. If it has a method `ready`, that imports what it needs; others are tried with the answer.
    packages, an attribute of it: packages whose further modules are imported when a check needs them.
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

    A library that imports a part of itself only when it is needed cannot do so without rights, and would call a right
    reply wrong. So modules of `scorer.packages` that a check asks for are imported here, and it is made again. A reply
    that runs as code can ask too: for modules of these packages alone, and a few times.
    """
    tried: set[str] = set()
    packages = getattr(scorer, "packages", ())
    for left in reversed(range(ROUNDS)):
        score, asked = _forked(scorer, seconds, memory, answer, entry)
        wanted = {name for name in asked if name.partition(".")[0] in packages}
        if wanted <= tried or not left:
            break
        for name in sorted(wanted - tried):
            with _passed_over():  # an optional one that is not there
                importlib.import_module(name)
        tried |= wanted
    return score


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
    """Notes which modules of some packages were to be imported; first in `sys.meta_path` it finds none."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages, self.names = packages, set[str]()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.packages:
            self.names.add(name)


def _scored(scorer: Any, answer: str, entry: dict[str, Any]) -> bytes:
    """Return the score of a reply as bytes, and after it the modules that were missing for it."""
    wanted = Wanted(getattr(scorer, "packages", ()))
    sys.meta_path.insert(0, wanted)
    score = 0.0
    try:
        score = scorer(answer, entry)
    except Exception:
        if not wanted.names:
            raise
    return SCORE.pack(score) + " ".join(sorted(wanted.names)).encode()[: LONGEST - SCORE.size]


def _forked(
    scorer: Any, seconds: float, memory: int, answer: str, entry: dict[str, Any]
) -> tuple[float, frozenset[str]]:
    """Return the score of a reply, and the names of modules that its check could not import."""
    result, end = os.pipe()
    child = os.fork()
    if not child:
        try:
            give_up_rights(end, seconds, memory)
            os.write(end, READY)
            os.write(end, _scored(scorer, answer, entry))
        finally:
            os._exit(0)
    os.close(end)
    if _next(result, len(READY), seconds) != READY:
        _ended(child)
        raise MemoryError  # no memory, no filter of system calls, no processor: no reply has been looked at
    said = _next(result, LONGEST, seconds)
    os.close(result)
    if said == b"":  # it broke down, or was killed
        status, used = _ended(child)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and used < seconds:
            raise MemoryError  # a reply can send no signal, and its last limit of time comes later
        return 0.0, frozenset()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    score, names = (said or b"")[: SCORE.size], (said or b"")[SCORE.size :].decode(errors="replace").split()
    return float(SCORE.unpack(score)[0]) if len(score) == SCORE.size else 0.0, frozenset(names)


def _next(pipe: int, size: int, seconds: float) -> bytes | None:
    """Return what a check writes next, empty if it ended; None if it writes nothing for too long.

    A scheduler that suspends the job, or Ctrl-Z, stops both processes and not the clock: that is one wait of many.
    """
    for _ in range(PATIENCE):
        if select.select([pipe], [], [], seconds)[0]:
            return os.read(pipe, size)
    return None


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


def give_up_rights(keep: int, seconds: float, memory: int) -> None:
    """Close all files but `keep`, limit time and memory, and refuse all system calls but ALLOWED, for ever."""
    import resource  # not on Windows

    def limit(kind: int, most: int) -> None:
        own = resource.getrlimit(kind)[1]  # of the shell: it may be lower, and cannot be raised
        most = most if own == resource.RLIM_INFINITY else min(most, own)
        resource.setrlimit(kind, (most, most))

    signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process; the next limit is for one that blocks the signal
    limit(resource.RLIMIT_CPU, math.ceil(seconds) + 1)

    for fd in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    os.closerange(3, keep)
    os.closerange(keep + 1, 1024)
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_CORE, 0)
    code = ctypes.create_string_buffer(_filter())
    program = struct.pack("HP", len(code) // 8, ctypes.addressof(code))  # struct sock_fprog
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(SECCOMP, FILTER, program):
        raise OSError(ctypes.get_errno(), "this kernel has no seccomp filter")


def _filter() -> bytes:
    """Return the instructions of the filter: kill other architectures, allow the listed calls, refuse the rest."""
    architecture, calls = ALLOWED[platform.machine()]
    rows = [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    rows += [(IF_EQUAL, len(calls) - i, 0, number) for i, number in enumerate(calls)]
    rows += [(RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *row) for row in rows)


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
    serve(sys.stdin.buffer, sys.stdout.buffer)
