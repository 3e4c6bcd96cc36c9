"""Each field of a run's YAML does something, is refused, or says why not.

This is a sample; `python -m tests.helpers.effects` tries all values in all contexts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import pytest

import ctrl
from experiments.common.section import Section
from experiments.config import ExperimentConfig
from experiments.data.config import DataConfig
from experiments.data.files import LocalFile
from experiments.evaluation.config import EvaluationConfig
from experiments.evaluation.suites import SUITES
from experiments.methods.config import ArmConfig
from experiments.training.config import TrainingConfig
from tests.helpers.effects import EFFECT, REFUSED, SAID, SILENT, TABLE, Case, Runs, cases, silent

SECTIONS: dict[str, type[Section]] = {
    "": ExperimentConfig,
    "data.": DataConfig,
    "data.new.": LocalFile,
    "training.": TrainingConfig,
    "evaluation.": EvaluationConfig,
    "arms.0.": ArmConfig,
    **{f"evaluation.suites.{name}.": suite.Settings for name, suite in SUITES.items()},
}


def all_fields() -> Iterator[str]:
    for prefix, section in SECTIONS.items():
        yield from (f"{prefix}{name}" for name in section.model_fields)
    yield from (f"arms.0.control.{one.name}" for one in fields(ctrl.ControlConfig))


def in_table(field: str) -> bool:
    """Whether the table has a value for a field, one below it, or one of the section that it is in."""
    known = [*TABLE["fields"], *TABLE["other"]]
    above = [field.rsplit(".", n)[0] for n in range(field.count("."))][1:]
    return any(key == field or key.startswith(f"{field}.") or (key in above and key.count(".") > 1) for key in known)


def test_the_table_has_all_fields() -> None:
    assert [field for field in all_fields() if not in_table(field)] == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("effects"))


@pytest.mark.slow
def test_a_sample_of_fields_has_effects(runs: Runs) -> None:
    chosen = [case for case in cases() if case.context in ("control", "chats", "kl")][3::22]
    assert {case.context for case in chosen} == {"control", "chats", "kl"}
    assert silent(runs, chosen) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "outcome"),
    [
        ("training.steps", 5, EFFECT),
        ("training.stepps", 5, REFUSED),
        ("arms.0.control.layers", 1, SAID),
        ("training.save_every", 3, SILENT),
    ],
)
def test_the_judge(runs: Runs, key: str, value: int, outcome: str) -> None:
    case = Case("full", key, value)
    assert runs.judge(case) == outcome
    assert silent(runs, [case]) == ([str(case)] if outcome == SILENT else [])
