"""The table of figures holds what is computed, computes what it holds, and is what all code and configs name."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import experiments
from experiments.evaluation.similarity import METRICS
from experiments.records import Record
from experiments.scorecard import aa_floor, scorecard, stream
from experiments.scorecard.figure import Figure
from experiments.scorecard.figures import FIGURES, FORMS, GAINS, HEADLINE, _efficiency, shown
from experiments.scorecard.names import figure_names
from experiments.scorecard.sample import GIVEN
from experiments.scorecard.trajectory import drawn_trajectory, trajectory_figures
from tests.helpers.planted_run import base_records, trained

ROOM = Path(experiments.__file__).parent
BASE = [*base_records(np.random.default_rng(0), 60), Record("text", "general", "nll", "0", value=3.0, tokens=9)]
COMPUTED_FROM = ("draw", "members", "closed")
ELSEWHERE = {"cost", "posthoc"}  # measured by the trainer and by operations on weights


def rich(after: bool) -> list[Record]:
    """Records of every suite in every form, before and after."""
    rows = trained(np.random.default_rng(1), BASE[:-1], 0.2, 0.4) if after else BASE[:-1]
    rows = [*rows, BASE[-1], Record("new", "poems", "nll", "0", value=3.0 - after, tokens=9)]
    read = {"plain": {"choice": 0, "options": ("a", "b", "c"), "scores": (-1.0, -2.0, -3.0)}}
    read |= {"generate": {"reply": "b", "parsed": True}}
    for form in FORMS:
        answer: dict[str, Any] = read.get(form, {})
        rows += [Record("kept", "capitals", form, str(i), correct=int(i > 3 * after), **answer) for i in range(8)]
    rows += [Record("new", "choice", "plain", "0", correct=1, scores=(-1.0, -2.0), options=("a", "b"))]
    rows += [Record("instructions", "upper case", "generate", "0", correct=1, reply="A")]
    rows += [Record("drift", task, "kl", "0", value=0.1, tokens=5) for task in ("replies", "new_prompts", *GIVEN)]
    return rows + [Record("alignment", name, "base", "0", value=0.5) for name in (*METRICS, "update")]


def computed() -> set[str]:
    """Names of all figures of these records."""
    base, after = rich(False), rich(True)
    found = {*scorecard(base, after, 100, gain_reference=0.5), *aa_floor(base, base, after, 100)}
    stages = [[Record("new", task, "generate", "0", correct=1) for task in ("a", "b")]] * 3
    found |= stream(stages, ("a", "b"), 100).keys()
    path = drawn_trajectory(BASE[:-1], {2: trained(np.random.default_rng(1), BASE[:-1], 0.0, 0.9)}, 100)
    return found | trajectory_figures({"arm": path})[1]["arm"].keys() | {"gap_depth", "gap_recovery"}


def test_every_figure_is_in_the_table_and_every_row_is_computed() -> None:
    tasks = {record.task for record in rich(False) if record.suite == "kept"}
    members = {"FORM": FORMS, "TASK": sorted(tasks)}
    rows = {name for figure in FIGURES.values() if figure.suite not in ELSEWHERE for name in figure.names(members)}
    assert computed() == rows
    assert {f"alignment_{metric}" for metric in (*METRICS, "update")} <= rows
    assert all(name == figure.name for name, figure in FIGURES.items())


@pytest.mark.parametrize("figure", FIGURES.values(), ids=lambda figure: figure.name)
def test_a_row_says_all_about_its_figure(figure: Figure) -> None:
    assert figure.title
    assert figure.meaning
    assert figure.formula
    assert sum(getattr(figure, name) is not None for name in COMPUTED_FROM) <= 1
    assert figure.draw if figure.trials else True
    assert not figure.name.rpartition(figure.family)[2] if figure.family else True
    assert set(figure.tables) <= {"gain", "run", "further", "compare", "base"}
    assert not figure.sign_test or figure.suite in ("new", "kept")
    unlimited = figure.suite == "stream" or figure.name == "retention_adjusted"  # nats too; a share of what can be ~ 0
    assert unlimited or figure.unit != "share" or figure.bounds != (-math.inf, math.inf)


def test_titles_tell_figures_apart() -> None:
    titles = [figure.title for figure in FIGURES.values()]
    assert len(set(titles)) == len(titles)


def test_unchanged_is_the_value_of_the_base_itself() -> None:
    base = rich(False)
    same = [r if r.suite not in ("drift", "alignment") else None for r in base]
    card = scorecard(base, [r for r in same if r], 100) | aa_floor(base, base, base, 100)
    known = [name for name in card if name in FIGURES and FIGURES[name].unchanged is not None]
    assert {"gain", "new_nll_drop", "retention", "forgetting", "nfr", "perplexity_drift"} <= set(known)
    assert {name: card[name].value for name in known} == {name: FIGURES[name].unchanged for name in known}


def test_the_figures_of_runs_and_comparisons() -> None:
    headline = ("gain", "new_nll_drop", "retention", "nfr", "kl", "perplexity_drift", "new_accuracy", "kept_accuracy")
    assert headline == HEADLINE
    assert headline[:2] == GAINS
    compared = [figure.name for figure in shown("compare")]
    assert compared[:5] == ["gain", "new_nll_drop", "retention", "average_harmonic", "nfr"]
    assert {f.name for f in FIGURES.values() if f.sign_test} == {
        "gain", "gain_normalised", "new_accuracy", "retention", "retention_adjusted", "kept_accuracy", "forgetting",
        "nfr", "pfr",
    }  # fmt: skip


CARDS = {"card", "scorecard", "figures", "drawn", "point", "cost"}  # names of mappings from figures


def _owner(node: ast.expr) -> str:
    """The last name of `result.scorecard`, `cards[name]`, `card`."""
    if isinstance(node, ast.Subscript):
        return _owner(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def named_figures(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the literals that look up a figure: card["x"], card.get("x"), "x" in card, figure_text(card, "x")."""
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr, ast.expr]] = []
        if isinstance(node, ast.Subscript):
            pairs = [(node.value, node.slice)]
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            pairs = [(node.comparators[0], node.left)]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and node.args
        ):
            pairs = [(node.func.value, node.args[0])]
        elif isinstance(node, ast.Call) and _owner(node.func) in ("figure_text", "gain_text", "tied_best"):
            pairs = [(ast.Name("card"), argument) for argument in node.args[1:2]]
        for owner, key in pairs:
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and _owner(owner) in {*CARDS, "FIGURES"}:
                yield ("cost/" if _owner(owner) == "cost" else "") + key.value, node.lineno


def test_code_names_figures_that_are_in_the_table() -> None:
    files = [path for path in ROOM.rglob("*.py") if path.parent.name != "scorecard"]
    found = [
        (name, f"{path.relative_to(ROOM)}:{line}")
        for path in files
        for name, line in named_figures(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert {"retention", "kept_accuracy", "average_harmonic", "cost/tokens"} <= {name for name, _ in found}
    unknown = [(name, place) for name, place in found if name not in FIGURES and name != "step"]
    assert unknown == []


def test_shipped_studies_name_figures_that_are_in_the_table() -> None:
    known = set(figure_names(("new", "kept", "drift", "text", "instructions", "alignment"), stream=True, floor=True))
    for path in (ROOM / "configs" / "studies").glob("*.yaml"):
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
        for entry in [*study["objectives"], *study.get("constraints", ())]:
            assert {part.strip() for part in entry["figure"].split("+")} <= known, path


@pytest.mark.filterwarnings("error")
def test_a_gain_for_no_change_has_no_figure_and_no_warning() -> None:
    """The KL of a model that has not changed may be below 0 by rounding."""
    eta = _efficiency(np.full(3, 0.5), np.array([0.04, 0.0, -1e-9]))
    np.testing.assert_allclose(eta, [2.5, np.nan, np.nan])
