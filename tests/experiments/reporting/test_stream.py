"""What a run on a stream of tasks shows: figures of a matrix that is chosen here, the table, a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.comparison.compare import compare
from experiments.comparison.folders import ComparedRun
from experiments.comparison.inputs import read_runs
from experiments.comparison.report import format_comparison
from experiments.config import load_config
from experiments.records import ArmResult, Estimate, Record, read_records
from experiments.reporting.stream import stream_card, stream_table, task_names
from experiments.runs.outcome import Outcome
from experiments.runs.run import run_experiment
from tests.helpers.small_run import small_config, small_values
from tests.helpers.stream_answers import BASE, CHECKPOINTS, ENDS, NEW, RIGHT, TASKS, answers, config

KEPT = [Record("kept", "capitals", "chat", f"kept {i}", correct=int(i < 6)) for i in range(8)]


def text(task: str, name: str, nll: float, tokens: int) -> Record:
    return Record("new", task, "nll", f"{task} {name}", value=nll, tokens=tokens)


def result(card: dict[str, Estimate], arm: str = "full") -> ArmResult:
    return ArmResult(arm, "full", 1e-3, "finished", None, 6, [], card)


def test_figures_are_those_of_the_matrix_at_the_ends_of_the_stages() -> None:
    card = stream_card(config(), BASE, CHECKPOINTS)
    assert card["stream_op"].value == pytest.approx((0.6 + 0.4 + 0.7) / 3)
    assert card["stream_bwt"].value == pytest.approx(((0.6 - 0.8) + (0.4 - 0.9)) / 2)
    assert card["stream_f"].value == pytest.approx(((0.8 - 0.6) + (0.9 - 0.4)) / 2)
    assert card["stream_fwt"].value == pytest.approx(((0.3 - 0.2) + (0.1 - 0.0)) / 2)
    assert all(e.low is not None and e.high is not None and e.low <= e.value <= e.high for e in card.values())


def test_texts_count_by_their_likelihood_and_their_tokens() -> None:
    mine = config(data={"new": [{"name": "gcd"}, {"name": "lcm"}], "order": "sequential"}, training={"steps": 2})
    levels = ((3.0, 2.0), (1.0, 2.0), (2.0, 0.5))  # of task a: two texts at level and level + 1, of 30 and 10 tokens
    base, *stages = ([text("gcd", "x", a, 30), text("gcd", "y", a + 1, 10), text("lcm", "x", b, 20)] for a, b in levels)
    card = stream_card(mine, base, dict(enumerate(stages, start=1)))
    assert card["stream_op"].value == pytest.approx((-2.25 - 0.5) / 2)
    assert card["stream_bwt"].value == pytest.approx(-1.0)
    assert card["stream_f"].value == pytest.approx(1.0)
    table = stream_table(mine, [result(card)])
    assert table is not None
    assert "-NLL of held-out texts, nats per token" in table.note


def test_there_are_no_figures_before_the_end_without_the_suite_or_for_mixed_data() -> None:
    assert stream_card(config(), BASE, {step: CHECKPOINTS[step] for step in (2, 4)}) == {}
    assert stream_card(config(data={"new": NEW}), BASE, CHECKPOINTS) == {}
    evaluation = {"suites": ["kept"], "bootstrap": 100}
    assert task_names(config(evaluation=evaluation)) == []
    assert stream_card(config(evaluation=evaluation), BASE, CHECKPOINTS) == {}
    texts = [text("gcd", "x", 1.0, 9)]
    uneven = {step: [*records, *texts] for step, records in CHECKPOINTS.items()}
    assert stream_card(config(), [*BASE, *texts], uneven) == {}


def entry(name: str, last: tuple[int, ...], tasks: tuple[str, ...] = TASKS) -> ComparedRun:
    checkpoints = {step: [*records, *KEPT] for step, records in CHECKPOINTS.items()} | {6: [*answers(last), *KEPT]}
    return ComparedRun(name, [*BASE, *KEPT], checkpoints, stages=dict(zip(tasks, ENDS, strict=True)))


def test_streams_are_compared_by_question() -> None:
    result = compare([entry("a", RIGHT[-1]), entry("b", (8, 7, 7)), entry("same", RIGHT[-1])], draws=200)
    assert result.cards["a"]["stream_op"].value == pytest.approx((0.6 + 0.4 + 0.7) / 3)
    found = {(d.name, d.figure): d.value for d in result.differences}
    assert found["b", "stream_bwt"].value == pytest.approx((0.2 + 0.3) / 2)
    assert found["b", "stream_f"].value == pytest.approx(-(0.2 + 0.3) / 2)
    assert found["b", "stream_fwt"].value == 0
    assert (found["same", "stream_op"].low, found["same", "stream_op"].high) == (0, 0)  # the same draws for all
    assert "stream BWT" in format_comparison(result)


def test_streams_of_other_tasks_are_not_compared() -> None:
    result = compare([entry("a", RIGHT[-1]), entry("b", RIGHT[-1], TASKS[::-1])], draws=100)
    assert not any(name.startswith("stream") for card in result.cards.values() for name in card)
    assert "streams are of other tasks, or in another order" in " ".join(result.notes)
    lost = entry("c", RIGHT[-1], ("chain_sum", "gcd", "lcm"))
    result = compare([lost, replace(lost, name="d")], draws=100)
    assert "no figures of the stream: no item of task 'lcm' is common to all runs and stages" in result.notes
    others = [replace(r, item=f"other {r.item}") for r in lost.base if r.suite == "new"]
    result = compare([entry("a", RIGHT[-1]), replace(entry("b", RIGHT[-1]), base=[*others, *KEPT])], draws=100)
    assert f"no figures of the stream: no item of task {TASKS[0]!r} is common to all runs and stages" in result.notes


def test_the_table_shows_arms_that_came_to_the_end_and_when_stages_ended() -> None:
    card = {
        "stream_op": Estimate(0.5, 0.4, 0.6), "stream_bwt": Estimate(-0.35, -0.5, -0.2),
        "stream_f": Estimate(0.35, 0.2, 0.5), "stream_fwt": Estimate(0.1, 0.0, 0.2),
    }  # fmt: skip
    table = stream_table(config(), [result(card), result({"gain": Estimate(0.1)}, "stopped")])
    assert table is not None
    assert table.head == ("arm", "stream OP", "stream BWT", "stream F", "stream FWT")
    assert table.rows == (("full 1e-3", ".50 [.40,.60]", "-.35 [-.50,-.20]", "+.35 [.20,.50]", "+.10 [.00,.20]"),)
    assert table.note.startswith("Learned one after the other: chain_sum to step 2, gcd to step 4, spell_backward to")
    assert "(accuracy)" in table.note
    assert stream_table(config(), [result({})]) is None
    assert stream_table(config(data={"new": NEW}), [result(card)]) is None


def test_the_shipped_stream_has_three_tasks_and_one_arm_that_replays_them() -> None:
    shipped = load_config("stream")
    assert len(task_names(shipped)) == 3
    assert shipped.data.stage_ends(shipped.training.steps) == (40, 80, 120)
    assert shipped.evaluation_steps == [40, 80, 120]
    assert [arm.name for arm in shipped.arms if arm.replay] == ["replay"]
    assert [source.source for source in shipped.data.old] == ["earlier"]


WORDS = {"sea": "wave tide salt ship", "sums": "one two plus equals"}  # two kinds of text, by the file's name


def run(base: str, root: Path) -> Outcome:
    for name, words in WORDS.items():
        documents = [{"text": f"{words} {i} {words}"} for i in range(12)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    new = [{"source": "file", "path": str(root / f"{name}.jsonl"), "text": "text"} for name in WORDS]
    data = {"new": new, "order": "sequential", "old": {"source": "earlier"}, "regime": "cpt", "length": 32}
    full = {"method": "full", "learning_rates": [1e-2]}
    arms = [{"name": "full", **full}, {"name": "replay", "replay": 0.25, **full}]
    training = {"steps": 5, "batch_size": 4, "warmup_steps": 0}
    suites = {"every": 4, "suites": ["new", "kept"], "kept_tasks": ["capitals"]}
    evaluation = small_values(base)["evaluation"] | suites
    made = small_config(base, data=data, training=training, evaluation=evaluation, arms=arms)
    return run_experiment(made, root / "mlruns", say=lambda text: None)


def level(records: list[Record], task: str) -> float:
    """-NLL in nats per token, texts weighted by their tokens."""
    found = [(r.value or 0.0, r.tokens or 0) for r in records if r.task == task]
    return -sum(value * tokens for value, tokens in found) / sum(tokens for _, tokens in found)


@pytest.mark.slow
def test_a_run_measures_each_task_after_each_stage_and_shows_it_in_its_report(base: str, tmp_path: Path) -> None:
    outcome = run(base, tmp_path)
    assert not outcome.failed
    for result in outcome.results:
        assert [point["step"] for point in result.trajectory] == [0, 2, 4, 5]
        folder = outcome.folder / "arms" / f"{result.arm}-0.01"
        first, last = (read_records(folder / f"items-{step}.jsonl") for step in (2, 5))
        change = level(last, "sea") - level(first, "sea")
        assert change != 0
        assert result.scorecard["stream_op"].value == pytest.approx((level(last, "sea") + level(last, "sums")) / 2)
        assert result.scorecard["stream_bwt"].value == pytest.approx(change)
    drawn = json.loads((outcome.folder / "arms" / "replay-0.01" / "data.json").read_text())["drawn"]
    assert [(one["name"], one["stage"], one["replayed"]) for one in drawn] == [
        ("sea", 1, False), ("sums", 2, False), ("sea", 2, True),
    ]  # fmt: skip
    page = outcome.report.read_text(encoding="utf-8")
    for expected in ("Stream of tasks", "Tasks after each stage", "<th>stage</th>", "-NLL of held-out texts"):
        assert expected in page, expected
    assert "stream_bwt" in (outcome.folder / "table.csv").read_text().splitlines()[0]
    entries = read_runs([str(outcome.folder)])
    assert [one.stages for one in entries] == [{"sea": 2, "sums": 5}] * 2
    cards = compare(entries, draws=100).cards
    assert [cards[f"{r.arm}-0.01"]["stream_f"].value for r in outcome.results] == pytest.approx(
        [r.scorecard["stream_f"].value for r in outcome.results]
    )
    again = run(base, tmp_path)  # arms are read from disk
    assert [r.scorecard for r in again.results] == [r.scorecard for r in outcome.results]
    assert "Tasks after each stage" in again.report.read_text(encoding="utf-8")
