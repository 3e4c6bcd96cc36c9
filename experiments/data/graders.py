"""The table of graders, by the name in the YAML, and functions of the user: `grader: my_file:my_function`."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter

from experiments.common.errors import BenchError, MachineError
from experiments.common.hashing import file_digest, short_digest
from experiments.common.machine_faults import of_the_machine
from experiments.common.section import nearest
from experiments.data.code_grader import Code
from experiments.data.grader import Choice, Contains, Exact, Grader, Likelihood, Numeric, refused
from experiments.data.grader_files import installed, installed_files, load, own_files
from experiments.data.isolated_graders import Regex
from experiments.data.items import Item, Scorer
from experiments.data.math_grader import Math

GRADERS: dict[str, type[Grader]] = {  # a new one is added here
    "exact": Exact,
    "contains": Contains,
    "regex": Regex,
    "numeric": Numeric,
    "math": Math,
    "code": Code,
    "choice": Choice,
    "likelihood": Likelihood,
}
ROUNDED = 1e-6  # a similarity of equal vectors is 1 up to this


class Function(Grader):
    """A function of your own: (reply, entry) -> true or false, or a number of which 1 is right; above 1 is refused.

    entry: question, answer, and metadata with the columns that are named. An error counts as a wrong answer and is
    shown. The function runs in the bench's own process. If its file changes, or a module next to it that it imports, a
    run that began with the old one does not go on; one that is going on keeps the code that it began with. Other files
    that it opens, and modules that it imports by a name in a text, are not watched: write such data into a module.
    """

    version = 3
    main = "function"
    function: str = Field(description="FILE:FUNCTION, a file of Python with or without .py, or an installed module")
    columns: tuple[str, ...] = Field(
        (), description="columns that the function reads, in addition to question and answer"
    )

    @property
    def reads(self) -> tuple[str, ...]:
        return self.columns

    def check(self, items: Sequence[Item]) -> None:
        _function(self.function)

    def digest(self) -> str:
        return short_digest(super().digest(), *_code(self.function))

    def scorer(self) -> Scorer:
        """Return the function as its file is now: a file that is edited while a run goes on grades no reply of it."""
        return functools.partial(self._grade, _function(self.function))

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        return self._grade(_function(self.function), reply, entry)

    def _grade(self, function: Callable[..., Any], reply: str, entry: Mapping[str, Any]) -> float:
        try:
            score = float(function(reply, copy.deepcopy(dict(entry))))  # what it changes is its own
            if math.isnan(score):
                raise ValueError("it gave nan, not true, false or a number up to 1")
        except (Exception, SystemExit) as error:
            if isinstance(error, BenchError | MemoryError):
                raise
            if fault := of_the_machine(error, reply):
                raise MachineError(f"grader {self.function}: {fault}") from error
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"grader {self.function}: {said} (the reply counts as wrong)", stacklevel=2)
            return 0.0
        if score > 1 + ROUNDED:  # of 0 to 100, 1 is not right: all figures would be wrong
            why = f"it gave {score:g}: give true, false, or a number up to 1, of which 1 is right"
            raise refused(self.function, why)
        return 1.0 if score > 1 - ROUNDED else score


def read_grader(value: Any) -> Any:
    """Make a grader of a name or {name: its fields}. Raises ValueError, at the field's own place."""
    if value is None or isinstance(value, Grader):
        return value
    fields = {value: {}} if isinstance(value, str) else value
    if not isinstance(fields, dict) or len(fields) != 1:
        raise ValueError(f"give one name, or one name with its fields, as {{numeric: {{tolerance: .01}}}}: {value!r}")
    ((name, given),) = fields.items()
    cls: type[Grader] = Function if ":" in str(name) else GRADERS.get(name, Grader)
    if cls is Grader:
        raise ValueError(f"unknown name {name!r}: {nearest(str(name), GRADERS)}, or FILE:FUNCTION of your own")
    plain = given if isinstance(given, dict) else {} if given is None else {cls.main or "value": given}
    own = {"function": name} if cls is Function else {}
    entry: TypeAdapter[Any] = TypeAdapter(dict[str, cls])  # type: ignore[valid-type]
    return entry.validate_python({name: {**own, **plain}})[name]


def write_grader(grader: Grader) -> Any:
    """Return the plain values that `read_grader` reads: a name, or {name: the fields that are not the default}."""
    fields = grader.model_dump(mode="json", exclude_defaults=True)
    if isinstance(grader, Function):
        name = fields.pop("function")
    else:
        name = next(name for name, cls in GRADERS.items() if cls is type(grader))
    return {name: fields} if fields else name


AnyGrader = Annotated[Grader, BeforeValidator(read_grader), PlainSerializer(write_grader)]


def found_next_to(value: Any, folder: Path) -> Any:
    """Return plain values in which each `grader: FILE:FUNCTION` whose file is in `folder` has the path of that file.

    A file in the working directory comes first.
    """
    if isinstance(value, list):
        return [found_next_to(one, folder) for one in value]
    if not isinstance(value, dict):
        return value
    return {k: _placed(v, folder) if k == "grader" else found_next_to(v, folder) for k, v in value.items()}


def _placed(grader: Any, folder: Path) -> Any:
    if isinstance(grader, dict):
        return {_placed(name, folder): fields for name, fields in grader.items()}
    file, colon, function = str(grader).rpartition(":")
    if not colon or not isinstance(grader, str) or _file(grader):
        return grader
    path = folder / _python(file)
    return f"{path}:{function}" if path.is_file() else grader


def _file(name: str) -> Path | None:
    """Return the file of FILE:FUNCTION; None if there is none, so that it must be an installed module."""
    path = Path(_python(name.rpartition(":")[0])).expanduser()
    return path if path.is_file() else None


def _python(file: str) -> str:
    return file if file.endswith(".py") else f"{file}.py"


def _code(name: str) -> tuple[str, ...]:
    """Return the text of FILE and the digests of the modules of its own that it imports: all that grades depend on."""
    file = _file(name)
    files = own_files(file) if file else installed_files(name.rpartition(":")[0])
    text = files[0].read_text(encoding="utf-8", errors="replace") if files else ""
    return (text, *sorted(f"{path.name} {file_digest(path)}" for path in files[1:]))


def _function(name: str) -> Callable[..., Any]:
    """Import FILE:FUNCTION, again if its code has changed. Raises ConfigError."""
    return _imported(name, _file(name), _code(name))


@functools.lru_cache
def _imported(name: str, file: Path | None, code: tuple[str, ...]) -> Callable[..., Any]:
    module, _, function = name.rpartition(":")
    try:
        loaded = load(file) if file else installed(module)
    except Exception as error:
        raise refused(
            name, f"{file or module} cannot be imported from {Path.cwd()} ({type(error).__name__}: {error})"
        ) from error
    found = getattr(loaded, function, None)
    if not callable(found):
        names = [one for one in dir(loaded) if callable(getattr(loaded, one)) and not one.startswith("_")]
        raise refused(name, f"{file or module} has no function {function!r}: {nearest(function, names)}")
    try:
        inspect.signature(found).bind("", {})
    except TypeError as error:
        raise refused(name, f"it is called with a reply and an entry: {error}") from None
    except ValueError:  # of a function in C, whose parameters are not known
        pass
    return found
