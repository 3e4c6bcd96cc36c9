"""Processes without rights: what a reply that runs as code can do there, which is nothing outside."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.common.errors import MachineError
from experiments.data import isolated
from experiments.data.code_grader import Code
from experiments.data.isolated import Isolated, _checked
from experiments.data.rights import supported
from tests.helpers.hostile import ATTEMPTS, attempt, refused

pytestmark = pytest.mark.skipif(not supported(), reason="needs Linux with seccomp")
ENTRY = {"question": "q", "answer": "import os, socket, subprocess", "metadata": {}}


@pytest.fixture(scope="module")
def scorer() -> Isolated:
    return Isolated(refused, seconds=1.0)


@pytest.mark.parametrize("kind", ATTEMPTS)
def test_the_system_refuses(kind: str, scorer: Isolated, tmp_path: Path) -> None:
    assert scorer(attempt(kind, tmp_path), ENTRY) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert scorer("1 + 1", ENTRY) == 0.0


def test_one_check_leaves_nothing_for_the_next(scorer: Isolated) -> None:
    assert scorer("import os; os.mine = 1", ENTRY) == 0.0
    assert scorer("import os\nif not hasattr(os, 'mine'): raise PermissionError", ENTRY) == 1.0


@pytest.mark.parametrize("reply", ["1 / 0", "while True: pass", "import os; os._exit(3)"])
def test_errors_and_endless_loops_are_wrong(reply: str, scorer: Isolated) -> None:
    start = time.monotonic()
    assert scorer(reply, ENTRY) == 0.0
    assert time.monotonic() - start < 10
    assert scorer("raise PermissionError", ENTRY) == 1.0


class Lazy:
    """A check that imports a module only when it needs it, which it must not take from a file itself."""

    packages = ("lazy_part",)

    def ready(self) -> None: ...

    def __call__(self, answer: str, entry: dict[str, Any]) -> float:
        try:
            return float(importlib.import_module(answer).SCORE)
        except ImportError:
            return 0.25  # as math-verify, which takes it for a formula that it cannot compare


def test_a_library_may_import_parts_of_itself_when_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lazy_part").mkdir()
    (tmp_path / "lazy_part" / "__init__.py").write_text("")
    (tmp_path / "lazy_part" / "more.py").write_text("print('Hello from lazy_part!', flush=True)\nSCORE = 1.0")
    (tmp_path / "lazy_other.py").write_text("SCORE = 1.0")
    monkeypatch.syspath_prepend(tmp_path)
    checks = Isolated(Lazy())
    assert checks("lazy_part.more", ENTRY) == 1.0
    assert checks("lazy_part.none", ENTRY) == 0.25
    assert checks("lazy_other", ENTRY) in (0.0, 0.25)  # not one of its packages


RIGHT = struct.pack("d", 1.0)


def says(said: str) -> str:
    """Return a reply that writes to the next pipe of this process, which is that of its result."""
    pipes = os.pipe()
    for pipe in pipes:
        os.close(pipe)
    return f"import os\nfor pipe in {pipes}:\n  try: os.write(pipe, {said})\n  except OSError: pass\nos._exit(0)"


@pytest.mark.parametrize("packages", [(), ("lazy_part",)])
def test_a_reply_cannot_have_modules_imported_outside_of_its_check(
    packages: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can write to the pipe of its result whatever the check itself would write there: names of modules too."""
    (tmp_path / "other.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(refused, "packages", packages, raising=False)
    assert _checked(refused, 1.0, 1 << 32, says(repr(RIGHT + b"other other.x")), ENTRY) == 1.0
    assert not (tmp_path / "ran").exists()


def test_a_reply_cannot_end_the_server_or_keep_it_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "packages", ("lazy_part",), raising=False)
    monkeypatch.setattr(isolated, "ROUNDS", 3)
    said = says(f"{RIGHT!r} + b' lazy_part.' + os.urandom(8).hex().encode()")
    assert _checked(refused, 1.0, 1 << 32, said, ENTRY) == 1.0
    assert _checked(refused, 1.0, 1 << 32, says(repr(RIGHT + b"\xff")), ENTRY) == 1.0
    assert _checked(refused, 1.0, 1 << 32, says(repr(b"\xff")), ENTRY) == 0.0


def test_what_a_reply_has_imported_is_in_its_own_check_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it decides with what memory later checks begin, and with what else a module sets when it is imported."""
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    said = "import wave\nraise PermissionError"
    assert [_checked(refused, 1.0, 1 << 32, said, ENTRY) for _ in range(2)] == [1.0, 1.0]
    assert "wave" not in sys.modules


def slow(answer: str, entry: dict[str, Any]) -> float:
    """A check that waits longer than its limit for a processor, as on a busy machine."""
    time.sleep(0.5)
    return 1.0


def test_a_busy_machine_makes_no_answer_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit counts the work of the check. One that never ends is ended all the same."""
    monkeypatch.setattr(isolated, "give_up_rights", lambda *_: None)
    monkeypatch.setattr(isolated, "_sleeps", lambda child: False)
    assert _checked(slow, 0.2, 1 << 32, "", ENTRY) == 1.0
    monkeypatch.setattr(isolated, "PATIENCE", 1)
    assert _checked(slow, 0.2, 1 << 32, "", ENTRY) == 0.0


LOCKED = "import _thread; lock = _thread.allocate_lock(); lock.acquire(); lock.acquire()"


@pytest.mark.parametrize("reply", ["import time; time.sleep(60)", LOCKED])
def test_a_reply_may_sleep_for_as_long_as_it_may_work(reply: str) -> None:
    """One that waits for ever would take as long as thirty that work until their limit."""
    start = time.monotonic()
    assert _checked(refused, 0.5, 1 << 32, reply, ENTRY) == 0.0
    assert time.monotonic() - start < 8
    assert _checked(refused, 0.5, 1 << 32, "import time; time.sleep(.2); raise PermissionError", ENTRY) == 1.0


def test_a_job_that_is_suspended_has_no_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on meanwhile, and a wait that has an end is over at once."""
    monkeypatch.setattr(isolated, "PATIENCE", 3)
    waits = iter([False, True])  # the first one ended while both processes were stopped
    real = isolated.select.select
    monkeypatch.setattr(isolated.select, "select", lambda r, w, x, s: real(r, w, x, s) if next(waits) else ([], [], []))
    read, write = os.pipe()
    os.write(write, b"+")
    assert isolated._next(read, 1, 0.2) == b"+"
    for pipe in (read, write):
        os.close(pipe)


BLOCKED = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF, signal.SIGXCPU})\nwhile True: pass"


@pytest.mark.slow
def test_a_reply_that_blocks_signals_is_ended(scorer: Isolated) -> None:
    assert scorer(BLOCKED, ENTRY) == 0.0
    assert scorer("raise PermissionError", ENTRY) == 1.0


def killed(answer: str, entry: dict[str, Any]) -> float:
    os.kill(os.getpid(), int(answer))
    return 1.0


def test_a_check_that_the_system_kills_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory is short. A check that breaks down by itself is one."""
    monkeypatch.setattr(isolated, "give_up_rights", lambda *_: None)
    with pytest.raises(MemoryError, match=r"^$"):
        _checked(killed, 5.0, 1 << 32, str(int(signal.SIGKILL)), ENTRY)
    assert _checked(killed, 5.0, 1 << 32, str(int(signal.SIGUSR1)), ENTRY) == 0.0


def unable(*_: Any) -> None:
    raise OSError("this kernel has no seccomp filter")


def test_a_system_in_which_no_check_can_begin_makes_no_answer_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reply would be wrong, of the base and of all arms, without a word."""
    monkeypatch.setattr(isolated, "give_up_rights", unable)
    with pytest.raises(MemoryError, match=r"^$"):
        _checked(killed, 5.0, 1 << 32, "0", ENTRY)
    monkeypatch.setattr(isolated, "give_up_rights", lambda *_: time.sleep(1))
    monkeypatch.setattr(isolated, "PATIENCE", 1)
    with pytest.raises(MemoryError, match=r"^$"):
        _checked(killed, 0.2, 1 << 32, "0", ENTRY)


def test_a_lower_limit_of_the_shell_makes_no_answer_wrong() -> None:
    """`ulimit -v` and `ulimit -t` cannot be raised again by a check that wants more."""
    if not (child := os.fork()):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        score = 0.0
        with contextlib.suppress(MemoryError):
            score = _checked(refused, 1.0, most + (1 << 30), "raise PermissionError", ENTRY)
        os._exit(0 if score == 1.0 else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_secret_of_the_environment_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    reply = "import os\nif 'HF_TOKEN' not in os.environ: raise PermissionError"
    assert Isolated(refused)(reply, ENTRY) == 1.0


def test_a_server_that_was_killed_is_started_again() -> None:
    scorer = Isolated(refused)
    scorer("1", ENTRY)
    assert scorer.server is not None
    os.kill(scorer.server.pid, 9)
    while scorer.server.poll() is None:
        time.sleep(0.01)
    assert scorer("raise PermissionError", ENTRY) == 1.0


class Unreadable:
    """What the server cannot read."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return (int, ("none",))


@pytest.mark.slow
def test_a_server_that_cannot_start_is_no_wrong_answer() -> None:
    with pytest.raises(MachineError, match="process that checks replies has ended"):
        Isolated(Unreadable())("1", ENTRY)


def test_ctrl_c_of_a_terminal_reaches_the_program_alone(scorer: Isolated) -> None:
    """Which ends its step, with all checks; a check that broke off would stop the run as a fault of the machine."""
    assert scorer("raise PermissionError", ENTRY) == 1.0
    assert scorer.server is not None
    assert os.getpgid(scorer.server.pid) != os.getpgid(0)


def test_an_interrupted_check_leaves_no_score_for_the_next_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Isolated(refused, seconds=1.0)
    assert checks("raise PermissionError", ENTRY) == 1.0

    class Interrupted:
        def unpack(self, text: bytes) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isolated, "SCORE", SimpleNamespace(size=0, unpack=Interrupted().unpack))
        with pytest.raises(KeyboardInterrupt, match=r"^$"):  # before its score was read
            checks("raise PermissionError", ENTRY)
    assert checks("1 + 1", ENTRY) == 0.0


class Breaks:
    """A check whose modules cannot be read, for a reason that its answer names."""

    packages = ("lazy_part",)

    def __call__(self, answer: str, entry: dict[str, Any]) -> float:
        importlib.import_module("lazy_part.more")
        return 1.0


@pytest.mark.parametrize(("error", "wrong"), [("OSError(24, 'x')", False), ("RuntimeError('x')", True)])
def test_a_module_that_the_machine_cannot_read_makes_no_answer_wrong(
    error: str, wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24: too many open files. A module that is broken for any other reason is passed over."""
    (tmp_path / "lazy_part").mkdir()
    (tmp_path / "lazy_part" / "__init__.py").write_text("")
    (tmp_path / "lazy_part" / "more.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lazy_part", raising=False)
    if wrong:
        assert _checked(Breaks(), 1.0, 1 << 32, "x", ENTRY) == 0.0
    else:
        with pytest.raises(OSError, match="24"):
            _checked(Breaks(), 1.0, 1 << 32, "x", ENTRY)


def test_a_file_of_the_working_directory_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a right reply that imports `statistics` is wrong next to one's own statistics.py, and that is run."""
    (tmp_path / "statistics.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    tests = {**ENTRY, "metadata": {"tests": "assert f([1, 3]) == 2"}}
    assert Code(allow=True).scorer()("import statistics\n\nf = statistics.mean", tests) == 1.0
    assert not (tmp_path / "ran").exists()
