"""Every figure says n, seeds and intervals, written by one helper."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments.records import Record
from experiments.reporting.plots.caption import SHARES, Asked, asked_in, asked_of, caption, write_caption
from tests.helpers.small_run import small_config

ROOT = Path(__file__).parents[4] / "experiments"
DRAWING = sorted(path for path in ROOT.rglob("*.py") if "Figure(" in path.read_text(encoding="utf-8"))


def test_a_caption_says_n_seeds_and_what_the_bars_are() -> None:
    asked = Asked({"new": 80, "kept": 1280, "replies": 8})
    start = "n: 80 new, 1,280 kept, 8 replies of the base; "
    assert caption(asked, SHARES) == start + f"1 seed; bars: 95 % intervals over questions; {SHARES}"
    more = Asked(asked.counts, seeds=3)
    assert caption(more, "nats per token", "bands") == (
        start + "3 seeds; bands: 95 % intervals over seeds and questions; nats per token"
    )
    assert caption(Asked(), "ranks", "") == "1 seed; no intervals; ranks"


def test_the_counts_are_those_of_the_config() -> None:
    values = small_config("base", seed=3).to_dict()
    kept = values["evaluation"]["suites"]["kept"]
    assert asked_in(values).counts == {"new": 4, "kept": 4 * len(kept["tasks"]), "replies": 2}
    assert asked_in(values, seeds=3).seeds == 3
    assert asked_in({"evaluation": {"suites": ["new"], "new_items": 5}}).counts == {"new": 5}  # of an earlier version


def test_new_questions_are_those_of_all_sources_and_test_files_have_their_own_number() -> None:
    evaluation = {"suites": ["new"], "new_items": 5}
    sums, words = {"source": "reasoning_gym", "name": "chain_sum"}, {"source": "file", "path": "words.jsonl"}
    assert asked_in({"evaluation": evaluation, "data": {"new": [sums, words]}}).counts == {"new": 10}
    tested = {"evaluation": evaluation, "data": {"new": [sums, {**words, "test": "exam.jsonl"}]}}
    assert asked_in(tested) == Asked()


def test_what_a_config_does_not_say_is_counted_in_the_records_or_not_at_all() -> None:
    files = {"items": 100, "tasks": ["capitals", {"path": "exam.jsonl"}]}  # the file may have 20 questions
    base = [Record("kept", "capitals", form, item) for form in ("chat", "plain") for item in ("a", "b", "c")]
    for kept in (files, {"items": "all", "tasks": ["capitals"]}):
        config = {"evaluation": {"suites": {"kept": kept}, "new_items": 64}}  # suite new is not measured
        assert asked_in(config) == Asked()
        assert asked_in(config, base) == Asked({"kept": 3})
        assert caption(asked_in(config, base), "x", "").startswith("n: 3 kept; 1 seed")


def test_of_a_measurement_the_counts_are_those_of_its_records() -> None:
    """A file may have fewer questions than the config allows, and a question that is asked in two forms is one."""
    forms = [Record("kept", "capitals", form, item) for form in ("chat", "plain") for item in ("a", "b")]
    sums = Record("new", "sums", "generate", "a", 1)
    found = asked_of([sums, *forms, Record("alignment", "x", "base", "a")])
    assert found == Asked({"new": 1, "kept": 2})
    chats = [Record("new", "chats", "nll", item, value=1.0, tokens=5) for item in ("a", "b", "c")]
    assert asked_of(chats) == Asked({"new": 3})
    assert asked_of([sums, *chats]) == Asked({"new": 1})  # of which the gain is


@pytest.mark.parametrize("title", ["", "learning rate"])
def test_it_is_above_the_legend_or_at_the_lower_edge(title: str) -> None:
    figure = Figure(layout="constrained")
    write_caption(figure, "n: 80 new")
    assert figure.get_supxlabel() == "n: 80 new"
    other = Figure(layout="constrained")
    (line,) = other.subplots().plot([0, 1])
    other.legend(handles=[line], labels=["a"], title=title or None)
    write_caption(other, "n: 80 new")
    assert other.legends[0].get_title().get_text() == "\n".join(filter(None, ["n: 80 new", title]))
    assert not other.get_supxlabel()


def test_each_figure_of_the_bench_has_one() -> None:
    """A function that returns a figure writes a caption into it, or leaves it to another one that does."""
    makers = 0
    for path in DRAWING:
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name[0] != "_" and _returns_figure(node):
                source = ast.get_source_segment(text, node) or ""
                assert "write_caption(figure" in source or "_figure)(" in source, f"{path.name}: {node.name}"
                makers += 1
    assert makers >= 15


def _returns_figure(node: ast.FunctionDef) -> bool:
    return node.returns is not None and ast.unparse(node.returns) in ("Figure", "Figure | None")


@pytest.mark.parametrize("inches", [4.5, 7.0, 10.5])
def test_a_long_caption_stays_inside_the_figure(inches: float) -> None:
    figure = Figure(figsize=(inches, 3))
    text = caption(Asked({"new": 80, "kept": 400, "replies": 8}, 3), SHARES)
    text += "; up and right is better; grey: the other arms"
    write_caption(figure, text)
    figure.canvas.draw()
    written = figure._supxlabel  # type: ignore[attr-defined]
    box = written.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert written.get_text().split() == text.split()
