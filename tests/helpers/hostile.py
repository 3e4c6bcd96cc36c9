"""A verifier that runs the reply, replies that try to do something outside of it, and a pickle that runs code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ATTEMPTS = {
    "a file": "open({made!r}, 'w')",
    "a file that is read": "open({kept!r})",
    "a folder": "import os; os.mkdir({made!r})",
    "a file less": "import os; os.unlink({kept!r})",
    "a shell": "import os; os.system('touch {made}') and os.kill(-1, 0)",
    "a process": "import os; os.fork()",
    "a signal": "import os; os.kill(os.getppid(), 0)",
    "a connection": "import socket; socket.socket()",
    "memory": "try: bytearray(1 << 40)\nexcept MemoryError: raise PermissionError",
}


def attempt(kind: str, folder: Path) -> str:
    """Return the reply; it would make `folder/made`, or read or delete `folder/kept`."""
    (folder / "kept").write_text("secret")
    return ATTEMPTS[kind].format(made=str(folder / "made"), kept=str(folder / "kept"))


def refused(answer: str, entry: dict[str, Any]) -> float:
    """Run a reply. Returns 1.0 if the system refused what it wanted."""
    try:
        exec(answer, {})
    except PermissionError:
        return 1.0
    return 0.0


class Ran:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)
