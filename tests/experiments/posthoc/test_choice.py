"""Choosing an alpha: by one half of the items, and reported on the other. The rule: tests/experiments/soften."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.cli import main as cli
from experiments.common.errors import ConfigError
from experiments.posthoc.choice import RULE, Point, choose_alpha, mildest, note_of, standard_error
from experiments.posthoc.run import operation_name, posthoc
from experiments.records import ArmResult, Estimate, Record, read_records, write_records
from experiments.runs.result_file import write_result
from experiments.scorecard.halves import even


def test_standard_errors() -> None:
    assert standard_error(Estimate(0.5, 0.304, 0.696)) == pytest.approx(0.1)
    assert standard_error(Estimate(0.5)) == 0


def test_the_mildest_point_has_the_fewest_lost_answers_near_the_best_gain() -> None:
    """The standard error of the best is .1 / 1.96 = .051."""
    gains, lost = (0.3, 0.46, 0.5, 0.49), (0.0, 0.02, 0.02, 0.1)
    points = [
        Point(i / 4, {"gain": Estimate(g, g - 0.1, g + 0.1), "nfr": Estimate(n)})
        for i, (g, n) in enumerate(zip(gains, lost, strict=True))
    ]
    assert mildest(points).alpha == 0.25
    assert mildest(points[2:]).alpha == 0.5


def planted(record: Record, choosing: bool) -> Record:
    """A kept answer that is lost in one half, and else as the base's."""
    if record.suite != "kept" or even(record) != choosing:
        return record
    assert isinstance(record.answer, int)
    return dataclasses.replace(record, correct=0, choice=(record.answer + 1) % len(record.options or ()))


@pytest.mark.parametrize(("others", "name"), [([], "op"), (["R/arms/b-1"], "op-R-b-1"), (["R/arms/c-1"], "op-R-c-1")])
def test_a_choice_over_other_arms_has_a_note_of_its_own(others: list[str], name: str) -> None:
    operation = operation_name("op", 0.5, list(map(Path, others)))
    result = ArmResult("a", "full", 0.01, "finished", operation=operation)
    assert note_of(result) == f"chosen-a-0.01-{name}.json"


@pytest.mark.slow
def test_an_alpha_is_chosen_by_one_half_and_reported_by_the_other(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers are planted: in the half that chooses alpha 0.25 loses nothing, in the other half it loses all."""
    alphas = [0.25, 0.75]
    results = posthoc(run, "control", 1e-2, "dial", alphas, say=lambda text: None)
    kept = {}
    for alpha in alphas:
        (file,) = (run / "posthoc" / f"control-0.01-dial-{alpha:g}").glob("items-*.jsonl")
        kept[file] = file.read_bytes()
        write_records(file, [planted(record, alpha == 0.75) for record in read_records(run / "base" / "items.jsonl")])
    chosen = choose_alpha(run, results, alphas)
    assert chosen.alpha == 0.25
    assert chosen.cards[0.25]["retention"].value == 0
    assert chosen.cards[0.75]["retention"].value == 1
    assert "alpha 0.25: " + RULE in chosen.text()
    noted = json.loads((run / "posthoc" / "chosen-control-0.01-dial.json").read_text())
    assert (noted["alpha"], noted["of"], noted["other_half"]["retention"]) == (0.25, alphas, 0)
    for file, content in kept.items():
        file.write_bytes(content)
    call = ["posthoc", str(run), "--arm", "control-0.01", "--op", "dial", "--alphas", "0.25", "0.75"]
    assert cli.main([*call, "--choose"]) == 0
    said = capsys.readouterr().out
    assert "(chosen)" in said
    assert "Half of the items chose it; the figures are those of the other half." in said


@pytest.mark.slow
def test_without_kept_tasks_nothing_is_chosen(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = posthoc(run, "control", 1e-2, "dial", [0.25, 0.75], say=lambda text: None)
    monkeypatch.setattr("experiments.posthoc.choice.score", lambda *args: {"gain": Estimate(0.0)})
    with pytest.raises(ConfigError, match="choosing an alpha needs a gain and kept tasks"):
        choose_alpha(run, results, [0.25, 0.75])


@pytest.mark.parametrize(
    ("figures", "chooses"), [(("gain", "nfr"), True), (("gain",), False), (("nfr", "kl"), False), ((), False)]
)
def test_what_a_choice_needs_is_looked_for_before_anything_is_measured(
    figures: tuple[str, ...], chooses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ArmResult("full", "full", 0.01, "finished", steps=1, scorecard={name: Estimate(0.5) for name in figures})
    write_result(tmp_path / "arms" / "full-0.01", result)
    asked: list[bool] = []
    monkeypatch.setattr("experiments.posthoc.run.posthoc", lambda *args: asked.append(True) or [])
    monkeypatch.setattr("experiments.reporting.tables.format_table", lambda results: "")
    monkeypatch.setattr("experiments.posthoc.choice.choose_alpha", lambda *args: SimpleNamespace(text=lambda: ""))
    call = ["posthoc", str(tmp_path), "--arm", "full-0.01", "--op", "wise", "--alphas", "0.25", "0.75", "--choose"]
    assert cli.main(call) == (0 if chooses else 2)
    assert asked == [True] * chooses
