"""`import experiments`: every name is there, is imported on first use, and is one that type checkers know."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments

PACKAGE = Path(experiments.__file__).parent
NOTEBOOKS = sorted((PACKAGE.parent / "notebooks").glob("*.py"))


@pytest.mark.parametrize("name", experiments.__all__)
def test_every_name_is_there(name: str) -> None:
    value = getattr(experiments, name)
    assert callable(value)
    assert value.__module__.startswith("experiments.")
    assert name in dir(experiments)
    assert name in vars(experiments)  # the second use is an ordinary look-up


def test_no_name_hides_a_room() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert not rooms & set(experiments.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'load_confg'; it has quiet, "):
        _ = experiments.load_confg
    with pytest.raises(ImportError, match="cannot import name 'load_confg'"):
        exec("from experiments import load_confg")


def test_importing_it_loads_no_library() -> None:
    code = "import sys, experiments; from experiments import ConfigError; "
    code += "print(*sorted({'torch', 'transformers', 'yaml', 'numpy', 'pydantic'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == ""


def test_no_room_imports_from_the_face() -> None:
    wrong = [
        str(path)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and node.module == "experiments" and not node.level)
        or (isinstance(node, ast.Import) and any(one.name == "experiments" for one in node.names))
    ]
    assert not wrong


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_need_no_other_import_of_the_bench(path: Path) -> None:
    modules = [
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("experiments")
    ]
    assert modules == ["experiments"]
