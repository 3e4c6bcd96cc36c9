"""compare over runs on disk with planted forgetting, through the command line where it matters."""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.main import main
from experiments.common.errors import CompareError
from experiments.comparison.compare import Comparison, common_items, compare
from experiments.comparison.folders import ComparedRun
from experiments.comparison.inputs import read_runs
from experiments.comparison.plot import note_of
from experiments.records import Record
from experiments.scorecard import scorecard
from tests.helpers.planted_run import ARMS, base_records, kept, records_of


def test_planted_forgetting_is_found_in_the_difference_and_no_gain_is_made_up(run: Path) -> None:
    result = compare(read_runs([str(run)]), reference="control-0.001", draws=1000)
    found = {d.figure: d for d in result.differences if d.name == "full-0.001"}
    assert found["retention"].value.value == pytest.approx(-0.3, abs=0.08)
    assert found["retention"].p_holm < 0.01
    assert found["retention_matched"].value.high is not None
    assert found["retention_matched"].value.high < -0.1
    assert found["gain"].p_holm > 0.01
    assert result.items == {"kept": 400, "new": 200}


def test_runs_that_give_the_same_answers_may_differ_by_what_120_questions_miss() -> None:
    """0.00 [0.00,0.00] would say that they never answer otherwise."""
    base, other = ([kept(i, wrong if i % 4 == 0 else 0) for i in range(120)] for wrong in (1, 2))
    new, learned = ([Record("new", "n", "generate", str(i), correct=c) for i in range(40)] for c in (0, 1))
    runs = [ComparedRun(n, base + new, {1: after + learned}) for n, after in (("a", base), ("b", other))]
    found = {d.figure: d for d in compare(runs, draws=500).differences}
    for figure in ("retention", "nfr", "retention_matched"):
        value = found[figure].value
        assert value.value == 0
        assert value.low is not None
        assert value.high is not None
        assert value.low < -0.01
        assert value.high > 0.01
        assert found[figure].p > 0.9


def test_a_question_that_is_asked_in_two_forms_is_one_in_a_caption() -> None:
    base = [kept(i, 0, form=form) for i in range(3) for form in ("chat", "plain")]
    result = Comparison("a", {})
    common_items([ComparedRun(name, base, {1: base}) for name in "ab"], result)
    assert (result.items, result.questions) == ({"kept": 6}, {"kept": 3})
    assert "\nn: 3 kept; 1 seed; " in note_of(result)


def test_a_difference_is_that_of_the_cards(run: Path) -> None:
    result = compare(read_runs([str(run)]), draws=2000)
    (name, other) = result.cards
    assert name == result.reference
    (difference,) = (d for d in result.differences if d.figure == "gain")
    first, second = result.cards[name]["gain"], result.cards[other]["gain"]
    assert difference.value.value == pytest.approx(second.value - first.value)
    assert result.cards[name]["gain"] == scorecard(*records_of(run, name), draws=2000)["gain"]


def test_the_harmonic_average_is_of_retention_and_of_the_gain_over_the_references(run: Path) -> None:
    result = compare(read_runs([str(run)]), reference="control-0.001", draws=500)
    gain = result.cards["control-0.001"]["gain"].value
    for name, card in result.cards.items():
        expected = scorecard(*records_of(run, name), draws=500, gain_reference=gain)["average_harmonic"]
        assert card["average_harmonic"].value == pytest.approx(expected.value)
    retention, own = (result.cards["control-0.001"][figure] for figure in ("retention", "average_harmonic"))
    assert own.value == pytest.approx(statistics.harmonic_mean([retention.value, 1.0]))
    # its gain is all of its gain in each draw: with the reference's gain as exact, intervals of other arms covered 78
    # to 87 times in 100
    assert own.low == pytest.approx(statistics.harmonic_mean([retention.low or 0.0, 1.0]), abs=1e-3)
    assert own.high == pytest.approx(statistics.harmonic_mean([retention.high or 0.0, 1.0]), abs=1e-3)


@pytest.mark.parametrize("measured", [False, True], ids=["without records", "failed after an evaluation"])
def test_the_reference_is_the_first_run_that_finished_as_in_a_runs_report(run: Path, measured: bool) -> None:
    finished = read_runs([str(run)])
    failed = dataclasses.replace(finished[0], name="failed", fault="failed: loss is NaN")
    failed = failed if measured else ComparedRun("failed", fault=failed.fault)
    result, alone = (compare(runs, draws=100) for runs in ([failed, *finished], finished))
    assert result.reference == alone.reference == finished[0].name
    assert [d for d in result.differences if d.name != "failed"] != []
    assert any(note.startswith(f"the reference is {finished[0].name}: no run before it") for note in result.notes)
    assert not any("the reference is" in note for note in alone.notes)
    if not measured:
        assert result.differences == alone.differences
        with pytest.raises(CompareError, match=r"'failed' has no item records .* give one of control-0.001, full-0"):
            compare([failed, *finished], "failed", draws=100)


def test_few_questions_that_differ_have_the_exact_p() -> None:
    """Seven kept questions, all lost: 2 * 2^-7, where resampling alone gives about 2 e^-7 = .002."""
    base = base_records(np.random.default_rng(0), 64)
    lost = [i for i, r in enumerate(base) if r.suite == "kept" and r.correct][:7]
    after = [dataclasses.replace(r, correct=0, choice=1) if i in lost else r for i, r in enumerate(base)]
    result = compare([ComparedRun("x", base, {1: base}), ComparedRun("y", base, {1: after})])
    (difference,) = (d for d in result.differences if d.figure == "retention")
    assert difference.p == pytest.approx(2 * 0.5**7)


def test_a_difference_of_runs_that_mostly_agree_is_narrower_than_unpaired(run: Path) -> None:
    base, after = records_of(run, "full-0.001")
    other = [dataclasses.replace(r, correct=0) if r.suite == "new" and int(r.item) < 20 else r for r in after]
    result = compare([ComparedRun("x", base, {1: after}), ComparedRun("y", base, {1: other})], draws=1000)
    (difference,) = (d for d in result.differences if d.figure == "gain")
    widths = [(e.high or 0) - (e.low or 0) for e in (difference.value, *(result.cards[n]["gain"] for n in "xy"))]
    assert 0 < widths[0] < 0.7 * math.hypot(*widths[1:])  # hypot: of independent samples


def test_an_entry_that_learns_nothing_does_not_take_the_matched_figures_from_the_others(run: Path) -> None:
    entries = read_runs([str(run)])
    idle = dataclasses.replace(entries[0], name="idle", checkpoints={20: entries[0].base})
    with_it, without = (compare(e, "control-0.001", draws=500) for e in ([*entries, idle], entries))
    for name in ARMS:
        for figure in ("retention_matched", "area", "hypervolume"):
            assert with_it.cards[name][figure] == without.cards[name][figure]
    assert "hypervolume" in with_it.cards["idle"]
    assert "area" not in with_it.cards["idle"]
    assert "no gain outside its interval, so no retention at matched gain: idle" in with_it.notes


def test_equal_runs_do_not_differ(run: Path) -> None:
    base, after = records_of(run, "full-0.001")
    result = compare([ComparedRun("x", base, {1: after}), ComparedRun("y", base, {1: after})], draws=200)
    (retention,) = (d for d in result.differences if d.figure == "retention")
    assert (retention.value.low, retention.value.high, retention.p) == (0, 0, 1)


def test_one_run_is_measured_from_its_base(run: Path) -> None:
    """As the results of lm_eval before and after training are; two of one name are refused."""
    both, (one,) = read_runs([str(run)]), read_runs([f"{run}:full-0.001"])
    alone, result = compare([one], draws=500), compare(both, draws=500)
    figures = ("gain", "retention", "nfr", "forgetting")
    assert [alone.cards[one.name][name] for name in figures] == [result.cards[one.name][name] for name in figures]
    assert (alone.differences, alone.reference) == ([], one.name)
    with pytest.raises(CompareError, match=r"runs with names of their own are needed, but got: full-0\.001, full"):
        compare([one, one])


@pytest.mark.slow
def test_the_command_line_prints_the_comparison_and_answers_wrong_names(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(run), "--draws", "200", "--out", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "retention at matched gain" in said
    assert "harmonic average" in said
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "page.png", "page.csv"}
    assert f"written: {tmp_path / 'page.html'}" in said
    assert main(["compare", str(run), "--draws", "200", "--out", str(tmp_path / "x.png")]) == 2
    assert "give a folder, which gets all files, or a name that ends in .html" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
    capsys.readouterr()
    assert main(["compare", str(run), "--draws", "200"]) == 0
    assert "with a picture: --out FOLDER" in capsys.readouterr().out
    assert main(["compare", str(run), "--reference", "contrl-0.001"]) == 2
    assert "did you mean 'control-0.001'?" in capsys.readouterr().err
    assert main(["compare", "no/such/run"]) == 2
    assert "'no/such/run' is no run" in capsys.readouterr().err
    assert main(["compare", f"{run}:control-0.001", "--draws", "200", "--out", str(tmp_path / "one")]) == 0
    assert "one run alone, measured from its base" in capsys.readouterr().out


def test_runs_that_trained_on_other_amounts_of_text_are_named(run: Path) -> None:
    first, second = read_runs([str(run)])
    runs = [dataclasses.replace(first, tokens=1000.0), dataclasses.replace(second, tokens=3000.0)]
    said = f"{first.name} on 1,000, {second.name} on 3,000"
    assert any(said in note for note in compare(runs, draws=100).notes)
    assert not any("tokens" in note for note in compare([first, second], draws=100).notes)
    (run / "arms" / first.name / "result.json").write_text('{"status": "finished", "cost": {"tokens": 7.0}}')
    assert read_runs([str(run)])[0].tokens == 7


def test_questions_with_another_right_answer_are_not_common() -> None:
    """The same words, read in another way: the file of questions was mended between the runs."""
    base = [dataclasses.replace(r, prompt="a" * 12, answer=0) for r in base_records(np.random.default_rng(0), 64)]
    mended = [dataclasses.replace(r, answer=1) if r.suite == "kept" and i < 10 else r for i, r in enumerate(base)]
    result = compare([ComparedRun("x", base, {1: base}), ComparedRun("y", mended, {1: mended})], draws=100)
    assert result.items == {"kept": 54, "new": 32}
    assert any("54 items are common to all runs, of 64" in note for note in result.notes)
