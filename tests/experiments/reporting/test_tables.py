"""The tables over invented arms."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from experiments.records import MEASURED, ArmResult, Estimate
from experiments.reporting.details import further_table
from experiments.reporting.tables import arms_table, format_table, retention_table, table_csv
from experiments.scorecard.figures import FIGURES
from tests.helpers.invented_arms import BASE, TASKS, six, synthetic, untrained


def test_the_terminal_table_fits_and_shows_intervals() -> None:
    lines = format_table([*six(), untrained()]).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert lines[0].split() == ["arm", "lr", "gain", "retention", "neg.", "flips", "KL", "ppl", "drift", "tok/s", "GB"]
    values = ["+.49 [.41,.57]", "1.00 [.97,1.03]", ".03 [.01,.05]", ".10 [.09,.11]", "+.03 [.00,.06]", "612", "2.3"]
    assert lines[7].split() == ["control", "3e-4", *" ".join(values).split()]
    assert lines[8] == "broken  1e-3 failed: OutOfMemoryError: <no memory> ..."


def test_the_floor_is_said_below_the_arms() -> None:
    results = six()
    assert arms_table(results).note == ""
    results[0].scorecard["floor_nfr"] = Estimate(0.08, 0.04, 0.14)
    said = "A/A floor, the base model against itself in other words: neg. flips .080 [.040,.140]."
    assert arms_table(results).note == said  # of a run from before the floor of retention
    results[0].scorecard["floor_retention"] = Estimate(0.97, 0.9, 1.04)
    last = format_table(results).splitlines()[-1]
    assert last == said.replace("neg. flips", "retention .97 [.90,1.04], neg. flips")
    assert len(last) <= 120
    own = ("retention/q", "retention_chat", "retention_generate")
    twice = (*(f"floor_retention/{task}" for task in TASKS), "floor_retention_chat")
    results[0].scorecard |= dict.fromkeys([*own, *twice], Estimate(1.0))
    more = "It is of what was asked twice, as flips above it are: not of task q, form generate."
    assert arms_table(results).note.endswith(f" {more}")
    table = further_table(results)
    assert table is not None
    assert table.note.endswith(f"asked in other words. {more}")


def test_the_csv_holds_every_figure_of_every_arm() -> None:
    results = [*six(), untrained()]
    rows = list(csv.DictReader(io.StringIO(table_csv(BASE, results))))
    assert [row["arm"] for row in rows] == ["base", *(r.arm for r in results)]
    assert float(rows[0]["kept_accuracy_high"]) == 0.88
    for row, result in zip(rows[1:7], results, strict=False):
        for name, estimate in result.scorecard.items():
            assert (float(row[name]), float(row[f"{name}_low"])) == (estimate.value, estimate.low)
        assert float(row["cost_tokens_per_s"]) == 612.4
    assert rows[-1]["reason"].startswith("OutOfMemoryError")
    assert rows[-1]["gain"] == ""


def test_the_best_arms_are_marked_and_a_failed_one_says_why() -> None:
    table = arms_table([*six(), untrained()])
    assert table.rows[-1] == ("broken", "1e-3", "failed: OutOfMemoryError: <no memory>\nsecond line")
    for reason, said in (("hopeless", "pruned after step 20: hopeless"), ("pruned at step 20: kl was 2",) * 2):
        pruned = replace(synthetic("full", 3e-3, 0.9, 1.0, steps=20), status="pruned", reason=reason)
        assert arms_table([pruned]).rows == (("full", "3e-3", said),)
        assert retention_table([pruned]) is None or retention_table([pruned]).rows == ()
    column = table.head.index("retention")
    assert [row for row, other in table.marks if other == column] == [4, 5]  # both learning rates of control
    wide = arms_table(six(), columns=[FIGURES["retention"]], costs={"minutes": list("abcdef")})
    assert wide.head == ("arm", "lr", "retention", "minutes", "tok/s", "GB")
    assert wide.rows[1] == ("full", "1e-4", ".88 [.85,.91]", "b", "612", "2.3")


def test_a_model_that_was_only_measured_has_no_learning_rate() -> None:
    one = ArmResult("theirs", MEASURED, 0.0, "finished", scorecard=BASE)
    assert arms_table([one]).rows[0][:2] == ("theirs", "-")
    rows = csv.DictReader(io.StringIO(table_csv(BASE, [one])))
    assert [(row["arm"], row["learning_rate"]) for row in rows] == [("base", ""), ("theirs", "")]


def test_retention_by_task_is_tinted() -> None:
    table = retention_table([*six(), untrained()])
    assert table is not None
    assert table.head == ("arm", *(task.replace("_", " ") for task in TASKS))
    assert len(table.rows) == 6
    assert all(mark.startswith('style="background: #') for mark in table.marks.values())
    assert len(table.marks) == 6 * len(TASKS)
    assert retention_table([untrained()]) is None


def test_retention_by_task_ends_with_the_base_asked_in_other_words() -> None:
    results = six()
    for result in results:
        result.scorecard[f"floor_retention/{TASKS[0]}"] = Estimate(0.97, 0.9, 1.04)
    table = retention_table(results)
    assert table is not None
    assert table.rows[-1] == ("base, in other words", ".97 [.90,1.04]", *["-"] * (len(TASKS) - 1))
    assert len(table.rows) == 7
    assert len(table.marks) == 6 * len(TASKS)
    assert "the A/A floor" in table.note
