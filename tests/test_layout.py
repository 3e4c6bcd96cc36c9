"""Tests mirror the rooms: tests/PACKAGE/room/test_x.py tests PACKAGE/room/x.py, or the table here says which does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.longest import LONGEST
from tests.helpers.thinned import THINNED

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
ENTRIES = 45  # so many exceptions at most: a new module gets a test file of its own

# module -> the test file that covers it
COVERED_BY = {
    # one contract is run on each variant of a table
    "ctrl.interpolation_base": "ctrl/test_interpolation.py",
    "experiments.data.source": "experiments/data/test_sources.py",
    "experiments.evaluation.kept_tasks.countries": "experiments/evaluation/kept_tasks/test_tasks.py",
    "experiments.evaluation.kept_tasks.question": "experiments/evaluation/kept_tasks/test_tasks.py",
    "experiments.evaluation.kept_tasks.words": "experiments/evaluation/kept_tasks/test_tasks.py",
    "experiments.methods.base": "experiments/methods/test_method.py",
    "experiments.methods.tables": "experiments/methods/test_method.py",
    "experiments.scorecard.figure": "experiments/scorecard/test_figures.py",
    # steps of one whole run, which are seen in what it leaves
    "experiments.runs.baseline": "experiments/runs/test_prepared.py",
    "experiments.runs.messages": "experiments/training/test_processes.py",
    "experiments.runs.outcome": "experiments/runs/test_run.py",
    "experiments.training.callbacks": "experiments/training/test_train.py",
    "experiments.training.meter": "experiments/training/test_trainer.py",
    # parts of a report or a picture, which are seen on the page
    "experiments.measure.plot": "experiments/measure/test_run.py",
    "experiments.soften.plot": "experiments/soften/test_run.py",
    "experiments.soften.report": "experiments/soften/test_run.py",
    "experiments.cli.soften": "experiments/soften/test_run.py",
    "experiments.measure.report": "experiments/measure/test_run.py",
    "experiments.measure.base": "experiments/measure/test_models.py",
    "experiments.measure.kinds": "experiments/measure/test_models.py",
    "experiments.cli.measure": "experiments/measure/test_models.py",
    "experiments.comparison.plot": "experiments/comparison/test_report.py",
    "experiments.reporting.run_details": "experiments/reporting/test_details.py",
    "experiments.studies.laws.plot": "experiments/studies/laws/test_mixture.py",
    # the records summed by a sample are those of every figure
    "experiments.scorecard.sample": "experiments/scorecard/test_card.py",
    # small parts of one neighbour, tested through it
    "experiments.studies.trial_results": "experiments/studies/report/test_same_gain.py",
    "experiments.cli.compare": "experiments/comparison/test_compare.py",
    "experiments.data.columnar": "experiments/data/test_tables.py",
    "experiments.data.columns": "experiments/data/test_files.py",
    "experiments.data.rights": "experiments/data/test_isolated.py",
    "experiments.data.sampling": "experiments/data/test_base_text.py",
    "experiments.models.modes": "experiments/evaluation/test_evaluate.py",
    "experiments.models.precision": "experiments/evaluation/test_evaluate.py",
    "experiments.models.prefix": "experiments/evaluation/test_multiple_choice.py",
    "experiments.training.config": "experiments/training/test_schedules.py",
    # the only file that imports MLflow: every test of a store goes through it
    "experiments.tracking.client": "experiments/tracking/test_store.py",
    # a folder of tests with tasks and a base of their own
    "experiments.evaluation.lm_eval_model": "experiments/evaluation/suites/lm_eval/test_settings.py",
    "experiments.evaluation.lm_eval_samples": "experiments/evaluation/suites/lm_eval/test_samples.py",
    "experiments.evaluation.suites.lm_eval": "experiments/evaluation/suites/lm_eval/test_measure.py",
}

# test files of no single module, next to tests/*.py
OF_SEVERAL = {
    "desk_browser/test_hostile_pages.py",  # MLflow and optuna-dashboard on text of others
    "desk_browser/test_lab.py",  # JupyterLab in a browser
    "desk_browser/test_pages.py",  # MLflow, optuna-dashboard and reports in a browser
    "experiments/evaluation/suites/lm_eval/test_settings.py",  # the settings of the suite in its folder
    "experiments/models/test_real_model.py",  # the shipped LLM instead of a tiny one
    "experiments/scorecard/test_coverage.py",  # all statistics over simulated models whose truth is known
    "experiments/scorecard/test_coverage_over_steps.py",  # the same of figures over several evaluations
    "experiments/scorecard/test_false_alarms.py",  # first line, A/A floor and paired tests over equal models
    "experiments/studies/test_postgres.py",  # the queue on a server instead of a file
    "experiments/runs/test_kills.py",  # runs and studies, killed at random moments
    "experiments/test_face.py",  # the names that `import experiments` gives
    "notebooks/test_by_hand.py",
    "notebooks/test_notebooks.py",
    "notebooks/test_openings.py",  # docs/openings.py
}
# the examples of the documentation are run through the contracts of the built-in variants
RUNS_CONTRACTS = {"test_examples.py", "test_examples_measured.py"}


def modules() -> list[Path]:
    """All files of ctrl and experiments that hold code, relative to the repository."""
    files = [path for package in ("ctrl", "experiments") for path in (ROOT / package).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in files if path.stem not in ("__init__", "__main__"))


def own_test(module: Path) -> str:
    return (module.parent / f"test_{module.stem}.py").as_posix()


def name_of(module: Path) -> str:
    return ".".join(module.with_suffix("").parts)


def test_every_module_has_a_test_file_or_a_line_in_the_table() -> None:
    assert len(modules()) > 150
    missing = [
        module.as_posix()
        for module in modules()
        if not (TESTS / own_test(module)).is_file() and name_of(module) not in COVERED_BY
    ]
    assert missing == [], f"add tests/{own_test(Path(missing[0]))}"


def test_the_table_is_true_and_short() -> None:
    own = {name_of(module): own_test(module) for module in modules()}
    assert set(COVERED_BY) <= set(own), "a module of the table is gone"
    assert [name for name in COVERED_BY if (TESTS / own[name]).is_file()] == [], "these have a test file of their own"
    assert [file for file in COVERED_BY.values() if not (TESTS / file).is_file()] == []
    assert len(COVERED_BY) <= ENTRIES


def test_every_test_file_is_of_a_module_or_of_a_whole() -> None:
    known = {own_test(module) for module in modules()} | set(COVERED_BY.values()) | OF_SEVERAL
    files = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py") if path.parent != TESTS}
    assert [file for file in sorted(files) if file.as_posix() not in known and file.parent.name != "whole"] == []
    assert [file for file in OF_SEVERAL if Path(file) not in files] == []


def test_the_longest_files_are_there() -> None:
    assert [file for file in LONGEST if not (TESTS / file).is_file()] == []
    assert [f"{file} {name}" for file, names in THINNED.items() for name in names if not _defines(file, name)] == []


def _defines(file: str, name: str) -> bool:
    return f"def {name.rpartition('::')[2]}(" in (TESTS / file).read_text()


def test_experiments_has_no_loose_modules() -> None:
    loose = {path.name for path in (ROOT / "experiments").glob("*.py")}
    assert loose == {"__init__.py", "config.py", "records.py"}


def test_helpers_of_several_tests_are_in_one_place() -> None:
    """No test file imports from another, and only tests/helpers/ has modules that are no tests."""
    found = [
        f"{path.relative_to(TESTS)} imports {name}"
        for path in TESTS.rglob("*.py")
        if path.name not in RUNS_CONTRACTS
        for name in imported(path)
        if name.startswith("tests.") and not name.startswith("tests.helpers")
    ]
    assert found == []
    others = [path for path in TESTS.rglob("*.py") if not path.name.startswith(("test_", "conftest", "__init__"))]
    assert {path.parent for path in others} == {TESTS / "helpers"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: write the whole name in place of a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
