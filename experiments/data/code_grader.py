"""A grader that runs the code of a reply with tests, in a process without rights (`isolated`)."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from experiments.data.code_blocks import code_of
from experiments.data.grader import refused
from experiments.data.isolated import LIBRARY, Isolated
from experiments.data.isolated_graders import InIsolation
from experiments.data.items import Item, Scorer
from experiments.data.rights import ALLOWED, supported

IMPORTED, MAIN = "reply", '__name__ = "__main__"\n'  # the name of a reply's module, and that of the tests
DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
SETS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
RUNS = (ast.Call, ast.Assert, ast.Raise, ast.Name)  # a name alone fails if the reply does not define it
# what programs import most; a process without rights cannot open the files of others, and has to ask for them
MODULES = (
    "abc", "array", "base64", "bisect", "cmath", "collections", "collections.abc", "contextlib", "copy", "dataclasses",
    "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools", "json",
    "math", "numbers", "operator", "os", "pprint", "queue", "random", "re", "statistics", "string", "sys", "textwrap",
    "time", "timeit", "traceback", "types", "typing", "unittest", "uuid", "zlib",
)  # fmt: skip


class Code(InIsolation):
    """The code of the reply passes tests: Python that runs after it and ends without an exception.

    It runs in a process that can open no file, no connection, no other process and no thread (Linux), so asyncio and
    time zones do not work there, with limits of time and memory. It could still fool its own tests. The code is that of
    the reply's blocks marked as Python, or else all of it. What it has under `if __name__ == "__main__":` is not run,
    since it may wait for input.
    """

    main = "tests"
    version = 5  # what the library imports late is there; a reply may sleep; no packages that the bench itself imports
    tests: str = Field("tests", description="column of the tests, a text or a list of lines, or a text with {columns}")
    allow: bool = Field(False, description="must be true: replies of the model are run as code")
    seconds: float = Field(10.0, gt=0, le=600, description="of the processor, for one reply; it may sleep for as long")
    memory: float = Field(1.0, gt=0, description="memory of one reply in GB")
    modules: tuple[str, ...] = Field(
        (), description="modules that programs may import, in addition to Python's own library"
    )

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(re.findall(r"{(\w+)}", self.tests)) if "{" in self.tests else (self.tests,)

    @property
    def needs(self) -> tuple[str, ...]:
        return "python", *map(_top, self.modules)

    def values(self, row: Mapping[str, Any], answer: str, cell: Any) -> tuple[str, dict[str, Any]]:
        cells = {name: _text(row[name]) for name in self.reads}
        tests = self.tests.format(**cells) if "{" in self.tests else cells[self.tests]
        if not tests.strip():
            raise ValueError("there are no tests")
        if _runs_nothing(tests):
            raise ValueError(
                "the tests run nothing, so any reply would pass: call what they define, such as "
                'tests: "{test}\\ncheck({entry_point})", and write assert before what they compare'
            )
        if "unittest.main(" in tests:
            raise ValueError(
                "unittest.main() ends the program, so no reply would pass: write assert unittest.TextTestRunner().run("
                "unittest.defaultTestLoader.loadTestsFromTestCase(NAME)).wasSuccessful()"
            )
        if missing := sorted(name for name in _imports(tests) if not self._may_import(name)):
            raise ValueError(f"the tests import {missing[0]}, so no reply would pass: add it to modules")
        return answer, {"tests": tests}

    def check(self, items: Sequence[Item]) -> None:
        if not self.allow:
            raise refused("code", "it runs the model's replies as code, in a process without rights: set allow: true")
        if not supported():
            raise refused("code", f"a process without rights needs Linux on {' or '.join(ALLOWED)}: choose another")
        if missing := [name for name in self.modules if not _is_there(name)]:
            raise refused("code", f"modules: {missing[0]} cannot be imported here: install it, or leave it out")

    def scorer(self) -> Scorer:
        return Isolated(self, self.seconds, int(self.memory * 2**30))

    def ready(self) -> None:
        for name in MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        for name in self.modules:
            importlib.import_module(name)

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        tests = entry["metadata"]["tests"]
        between = "" if _parsed(tests) is None else MAIN  # which would end a function that goes on in the tests
        module = sys.modules[IMPORTED] = types.ModuleType(IMPORTED)  # classes look their names up there
        with self._importing(module.__dict__):
            exec(compile(f"{code_of(reply)}\n\n{between}{tests}\n", "<reply>", "exec"), module.__dict__)
        return 1.0

    def _may_import(self, name: str) -> bool:
        return _top(name) in LIBRARY | {IMPORTED, *map(_top, self.modules)}

    @contextlib.contextmanager
    def _importing(self, program: dict[str, Any]) -> Iterator[None]:
        """Inside the block a program can import nothing else, also if this process has it (numpy, pydantic).

        program: its globals. Parts of such a package would be missing, and whether it is there would depend on the
        bench. What the grader's modules import in turn goes on.
        """
        own = builtins.__import__

        def guarded(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
            # a list: by a function in C that the program calls, not by an import of the program
            asked = globals is program and not isinstance(fromlist, list)
            if asked and not level and not self._may_import(name):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return own(name, globals, locals, fromlist, level)

        builtins.__import__ = guarded
        try:
            yield
        finally:
            builtins.__import__ = own


def _top(name: str) -> str:
    return name.partition(".")[0]


def _imports(tests: str) -> Iterator[str]:
    """Yield the modules that tests import, without those in a `try`: they can do without."""
    waiting: list[ast.AST] = [*(_parsed(tests) or ())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        if not isinstance(node, ast.Try):
            waiting += ast.iter_child_nodes(node)


def _is_there(module: str) -> bool:
    """Whether a module can be found; the packages around it are imported for this."""
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:
        return False


def _parsed(tests: str) -> list[ast.stmt] | None:
    """Return the statements of tests; None if they are no program, as they may go on where the reply ends."""
    try:
        return ast.parse(tests).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _runs_nothing(tests: str) -> bool:
    """Whether nothing in tests can fail: they only define, as those of pytest and HumanEval, which others call, or
    compare without `assert`."""
    body = _parsed(tests)
    thrown = [one for one in body or () if isinstance(one, ast.Expr) and _is_thrown(one.value)]
    idle = (*DEFINES, *SETS) if thrown else DEFINES  # x = f(2), then x == 4
    return body is not None and all(
        one in thrown or isinstance(one, idle) or not any(isinstance(x, RUNS) for x in _read(one)) for one in body
    )


def _is_thrown(value: ast.expr) -> bool:
    """Whether a value says what is right or wrong, and nobody looks at it."""
    if isinstance(value, ast.BoolOp):
        return all(map(_is_thrown, value.values))
    prints = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"
    return prints or isinstance(value, ast.Compare | ast.UnaryOp)


def _read(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield the parts of a statement, without names that it sets."""
    return (x for x in ast.walk(statement) if not (isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)))


def _text(cell: Any) -> str:
    return "\n".join(map(str, cell)) if isinstance(cell, list | tuple) else str(cell or "")
