"""Take from a process the right to open files, connections and processes, for ever: Linux's seccomp."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import signal
import struct
import sys
import time

# system calls that a check needs for memory, time and its result, by machine: (audit architecture, numbers)
ALLOWED = {
    # read, write, mmap, mprotect, munmap, brk, rt_sigreturn, rt_sigprocmask, sched_yield, mremap, madvise, exit,
    # gettimeofday, futex, clock_gettime, clock_nanosleep, exit_group, getrandom
    "x86_64": (0xC000003E, (0, 1, 9, 10, 11, 12, 15, 14, 24, 25, 28, 60, 96, 202, 228, 230, 231, 318)),
    "aarch64": (0xC00000B7, (63, 64, 222, 226, 215, 214, 139, 135, 124, 216, 233, 93, 169, 98, 113, 115, 94, 278)),
}
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # of prctl
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of the filter
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: the call returns EPERM


def supported() -> bool:
    """Whether processes without rights exist here."""
    return sys.platform == "linux" and platform.machine() in ALLOWED


def give_up_rights(keep: int, seconds: float, memory: int) -> None:
    """Close all files but `keep`, limit time and memory, and refuse all system calls but ALLOWED, for ever."""
    import resource  # not on Windows

    def limit(kind: int, most: int) -> None:
        own = resource.getrlimit(kind)[1]  # of the shell: it may be lower, and cannot be raised
        most = most if own == resource.RLIM_INFINITY else min(most, own)
        resource.setrlimit(kind, (most, most))

    signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process; the next limit is for one that blocks the signal
    limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds) + 1)

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
