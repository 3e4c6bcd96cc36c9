"""The project's files agree with each other: environment.yml, pyproject.toml, constraints.txt, the committed text."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    values: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return values


def test_conda_users_get_the_same_project(project: dict[str, Any]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python="))
    lowest = project["requires-python"].removeprefix(">=")
    assert python == f"python={lowest}"
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert "--constraint constraints.txt" in pip
    line = next(entry for entry in pip if entry.startswith("-e ."))
    extras = set(line.removeprefix("-e .[").removesuffix("]").split(","))
    assert extras == set(project["optional-dependencies"])


def test_every_dependency_is_pinned_once(project: dict[str, Any]) -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+", line) for line in lines)
    pinned = [_normal(line.split("==")[0]) for line in lines]
    assert len(set(pinned)) == len(pinned)
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)
        assert name is not None
        assert _normal(name.group()) in pinned, requirement


def test_the_makefile_has_the_targets_that_everyone_knows() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "quickstart", "test", "test-fast", "check", "docs", "lab", "ui"} <= targets


@pytest.mark.slow
def test_the_library_imports_without_the_bench() -> None:
    code = "import sys, ctrl; print(sorted({'experiments', 'mlflow', 'optuna', 'datasets', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
