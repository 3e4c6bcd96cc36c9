"""Grades depend on the versions of the packages that give them; what is installed now keeps the keys of old caches."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.common.hashing import short_digest
from experiments.data import versions
from experiments.data.code_grader import Code
from experiments.data.grader import Exact, Grader
from experiments.data.isolated_graders import Regex
from experiments.data.math_grader import Math
from experiments.data.procedural import ReasoningGym
from experiments.evaluation.suite import SuiteContext
from experiments.evaluation.suites.new_task import NewTaskSuite
from tests.helpers.byte_level import byte_tokenizer


def other(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    known = versions.version_of
    monkeypatch.setattr(versions, "version_of", lambda name: "99.0" if name == package else known(name))


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The versions of earlier caches."""
    monkeypatch.setattr(versions, "version_of", lambda name: versions.FIRST.get(name, ""))


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("grader", "package"),
    [
        (Math(), "math-verify"),
        (Math(), "sympy"),
        (Code(allow=True), "python"),
        (Code(allow=True, modules=("numpy.linalg",)), "numpy"),
    ],
)
def test_another_version_of_what_grades_is_another_grader(
    grader: Grader, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = grader.digest()
    assert before == short_digest(type(grader).__name__, grader.model_dump_json(), f"version {grader.version}")
    other(monkeypatch, package)
    assert grader.digest() != before
    assert Exact().digest() == short_digest("Exact", Exact().model_dump_json())
    assert Regex(pattern="x(.)").needs == ()


@pytest.mark.usefixtures("first")
def test_another_version_of_a_generators_verifier_is_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same questions and answers: the base's cached grades were those of the old verifier."""
    source, tokenizer = ReasoningGym(name="gcd"), byte_tokenizer()
    context = SuiteContext(0, "tiny")

    def content() -> object:
        return NewTaskSuite(NewTaskSuite.Settings(), context, tokenizer, [source.held_out(2, 0)]).content()

    task, before = source.held_out(2, 0), content()
    assert task.verifier == ""
    other(monkeypatch, "reasoning_gym")
    assert dataclasses.replace(source.held_out(2, 0), scorer=task.scorer, verifier="") == task
    assert content() != before


def test_what_is_not_installed_has_no_version() -> None:
    assert versions.version_of("no-such-package-here") == ""
    assert versions.other_versions("no-such-package-here") == []
    assert versions.version_of("python").count(".") == 1
