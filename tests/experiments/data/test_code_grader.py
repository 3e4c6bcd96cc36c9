"""Programs as replies: their tests, their modules and their limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.data.files import LocalFile
from experiments.data.graders import read_grader
from experiments.data.items import Item
from tests.helpers.question_files import write


def test_tests_of_code_are_columns_or_a_text_with_columns(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "test_list": ["assert f(1) == 1", "assert f(2) == 2"], "entry": "f"}]
    path = str(write(tmp_path / "a.jsonl", rows))
    for tests, expected in (
        ("test_list", "assert f(1) == 1\nassert f(2) == 2"),
        ("{test_list}\n{entry}(3)", "assert f(1) == 1\nassert f(2) == 2\nf(3)"),
    ):
        (item,) = LocalFile(path=path, grader={"code": tests}).examples
        assert isinstance(item, Item)
        assert item.metadata["tests"] == expected
    with pytest.raises(ConfigError, match=r"has no column 'tests'"):
        LocalFile(path=path, grader="code").examples  # noqa: B018


@pytest.mark.parametrize(
    ("tests", "runs"),
    [
        ("def check(candidate):\n    assert candidate(1) == 2", False),  # HumanEval's, without a call
        ("METADATA = {'author': 'x'}\n\ndef check(f):\n    assert f(1)\n\ncheck(g)", True),
        ("import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertTrue(f())", False),
        ("from pytest import approx\ndef test_f():\n    assert f(1)\n", False),
        ("# none", False),
        ('"none"\nNAME = "f"', False),
        ("result = f(1)", True),
        ("f(2) == 4\nf(3) == 6", False),  # without assert
        ("not f(2)\nprint(f(2) == 4)", False),
        ("x = f(2)\nx == 4", False),
        ("f(2) == 4\nassert f(3) == 6", True),
        ("f(2) == 4 and f(3) == 6", False),
        ("check(f) and check(g)", True),
        ("assert f(1) == 1", True),
        ("f", True),
        ("if f(1) != 2: raise ValueError", True),
        ("    assert f(1)  # goes on in the function of the reply", True),
    ],
)
def test_tests_that_run_nothing_are_refused(tests: str, runs: bool, tmp_path: Path) -> None:
    """Any reply would pass them, also an empty one."""
    path = str(write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a", "tests": tests}]))
    source = LocalFile(path=path, grader={"code": {"allow": True}})
    if runs:
        assert len(source.examples) == 1
    else:
        with pytest.raises(ConfigError, match="the tests run nothing, so any reply would pass"):
            source.examples  # noqa: B018


def test_unittest_main_is_refused(tmp_path: Path) -> None:
    """It looks for tests in the bench's own module, and ends with SystemExit, which is a wrong reply."""
    tests = "import unittest\nclass T(unittest.TestCase): pass\nif __name__ == '__main__':\n    unittest.main()"
    path = str(write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a", "tests": tests}]))
    with pytest.raises(ConfigError, match=r"unittest.main\(\) ends the program"):
        LocalFile(path=path, grader={"code": {"allow": True}}).examples  # noqa: B018


PROGRAMS = {  # what the library and packages import when it is needed, and further modules of the library
    "_strptime": ("from datetime import datetime", "datetime.strptime('01/02/2020', '%d/%m/%Y').year == 2020"),
    "_strptime of time": ("import time", "time.strptime('2020', '%Y').tm_year == 2020"),
    "a codec": ("", "'ü'.encode('cp1252') == bytes([252]) and '山'.encode('big5') == bytes([164, 115])"),
    "graphlib": ("import graphlib", "[*graphlib.TopologicalSorter({'a': ['b']}).static_order()] == ['b', 'a']"),
    "xml": ("import xml.etree.ElementTree as E", "E.fromstring('<a>1</a>').text == '1'"),
    "a mock": ("from unittest.mock import Mock", "Mock(return_value=3)() == 3"),
    "a part of numpy": ("import numpy as np", "np.testing.assert_allclose(np.fft.fft([1, 0]), [1, 1]) is None"),
    "sleep": ("import time", "time.sleep(.01) is None"),
}


def test_a_program_has_what_its_modules_import_later() -> None:
    """A right reply would be wrong. A module that acts when it is imported is there for none, and ends nothing."""
    grade = read_grader({"code": {"allow": True, "modules": ["numpy"]}}).scorer()
    for what, (line, true) in PROGRAMS.items():
        entry = Item("q", "a", {"tests": f"assert f()\nassert {true}"}).entry
        assert grade(f"{line}\ndef f(): return {true}", entry) == 1.0, what
        assert grade(f"{line}\ndef f(): return not ({true})", entry) == 0.0, what
    for name in ("this", "unittest.__main__", "yaml"):
        assert grade(f"import {name}", Item("q", "a", {"tests": ""}).entry) == 0.0
    assert grade("x = 1", Item("q", "a", {"tests": "assert x == 1"}).entry) == 1.0


@pytest.mark.parametrize("name", ["numpy", "pydantic", "experiments", "yaml", "pandas"])
def test_a_program_has_no_package_but_those_of_modules(name: str) -> None:
    """The process that checks replies has imported some of them itself, and not all their parts."""
    entry = Item("q", "a", {"tests": "assert f()"}).entry
    programs = {
        f"import {name}\ndef f(): return True": 0.0,
        f"def f():\n    from {name} import version\n    return True": 0.0,
        f"def f():\n    try:\n        import {name}\n    except ModuleNotFoundError:\n        return True": 1.0,
        "import json, os.path\nfrom datetime import datetime\ndef f(): return datetime.strptime('20', '%d')": 1.0,
    }
    grade = read_grader({"code": {"allow": True}}).scorer()
    assert {program: grade(program, entry) for program in programs} == programs


def test_what_the_modules_of_a_program_import_is_there() -> None:
    """pandas imports numpy, and parts of it late, which its functions in C do too."""
    grade = read_grader({"code": {"allow": True, "modules": ["pandas"]}}).scorer()
    program = (
        "import pandas as pd\ndef f(): return pd.Series([1.0, 2.0]).values.sum() + pd.Series([1]).to_numpy().mean()"
    )
    assert grade(program, Item("q", "a", {"tests": "assert f() == 4"}).entry) == 1.0
    assert grade(f"import numpy\n{program}", Item("q", "a", {"tests": "assert f() == 4"}).entry) == 0.0


@pytest.mark.parametrize(
    ("tests", "modules", "refused"),
    [
        ("import numpy as np\nassert np.allclose(f(), 1)", [], "numpy"),
        ("def check(f):\n    from pandas.testing import x\n    assert f()\ncheck(f)", [], "pandas.testing"),
        ("import numpy as np\nassert np.allclose(f(), 1)", ["numpy"], ""),
        ("try:\n    import numpy\nexcept ImportError:\n    numpy = None\nassert f()", [], ""),
        ("import math, os.path\nfrom reply import f\nassert f()", [], ""),
    ],
)
def test_tests_that_import_what_no_program_has_are_refused(
    tests: str, modules: list[str], refused: str, tmp_path: Path
) -> None:
    path = str(write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a", "tests": tests}]))
    source = LocalFile(path=path, grader={"code": {"allow": True, "modules": modules}})
    if not refused:
        assert len(source.examples) == 1
        return
    with pytest.raises(ConfigError, match=rf"the tests import {refused}, so no reply would pass: add it to modules"):
        source.examples  # noqa: B018


def test_memory_of_a_reply_is_limited() -> None:
    grade = read_grader({"code": {"allow": True, "memory": 0.3}}).scorer()
    entry = Item("q", "a", {"tests": ""}).entry
    assert grade("x = bytearray(1 << 20)", entry) == 1.0
    assert grade("x = bytearray(1 << 29)", entry) == 0.0


def test_modules_of_programs_are_there_before_a_reply_imports_them() -> None:
    with pytest.raises(ConfigError, match=r"modules: numppy cannot be imported here: install it, or leave it out"):
        read_grader({"code": {"allow": True, "modules": ["numpy", "numppy"]}}).check([])
    read_grader({"code": {"allow": True, "modules": ["numpy", "xml.dom"]}}).check([])
