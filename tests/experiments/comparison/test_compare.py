"""compare and gate over runs on disk with planted forgetting, through the command line where it matters."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.cli.main import main
from experiments.common.errors import CompareError
from experiments.comparison.compare import compare
from experiments.comparison.gate import gate
from experiments.comparison.inputs import ComparedRun, read_runs, share_base
from experiments.comparison.report import comparison_csv, format_comparison, write_comparison
from experiments.records import ArmResult, Estimate, Record, read_records, write_records
from experiments.scorecard import scorecard
from tests.helpers.simulated import base_records, trained, write_run

ARMS = {"full-0.001": (0.3, 0.5), "control-0.001": (0.0, 0.4)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "sums-1", ARMS)


def test_planted_forgetting_is_found_in_the_difference_and_no_gain_is_made_up(run: Path) -> None:
    result = compare(read_runs([str(run)]), reference="control-0.001", draws=1000)
    found = {d.figure: d for d in result.differences if d.name == "full-0.001"}
    assert found["retention"].value.value == pytest.approx(-0.3, abs=0.08)
    assert found["retention"].p_holm < 0.01
    assert found["retention_matched"].value.high is not None
    assert found["retention_matched"].value.high < -0.1
    assert found["gain"].p_holm > 0.01
    assert result.items == {"kept": 400, "new": 200}


def test_a_difference_is_that_of_the_cards(run: Path) -> None:
    result = compare(read_runs([str(run)]), draws=2000)
    (name, other) = result.cards
    assert name == result.reference
    (difference,) = (d for d in result.differences if d.figure == "gain")
    first, second = result.cards[name]["gain"], result.cards[other]["gain"]
    assert difference.value.value == pytest.approx(second.value - first.value)
    assert result.cards[name]["gain"] == scorecard(*_records(run, name), draws=2000)["gain"]


def test_the_harmonic_average_is_of_retention_and_of_the_gain_over_the_references(run: Path) -> None:
    result = compare(read_runs([str(run)]), reference="control-0.001", draws=500)
    gain = result.cards["control-0.001"]["gain"].value
    for name, card in result.cards.items():
        expected = scorecard(*_records(run, name), draws=500, gain_reference=gain)["average_harmonic"]
        assert card["average_harmonic"] == expected
    retention = result.cards["control-0.001"]["retention"].value
    own = result.cards["control-0.001"]["average_harmonic"].value
    assert own == pytest.approx(statistics.harmonic_mean([retention, 1.0]))


def test_few_questions_that_differ_have_the_exact_p() -> None:
    """Seven kept questions, all lost: 2 * 2^-7, where resampling alone gives about 2 e^-7 = .002."""
    base = base_records(np.random.default_rng(0), 64)
    lost = [i for i, r in enumerate(base) if r.suite == "kept" and r.correct][:7]
    after = [dataclasses.replace(r, correct=0, choice=1) if i in lost else r for i, r in enumerate(base)]
    result = compare([ComparedRun("x", base, {1: base}), ComparedRun("y", base, {1: after})])
    (difference,) = (d for d in result.differences if d.figure == "retention")
    assert difference.p == pytest.approx(2 * 0.5**7)


def test_a_difference_of_runs_that_mostly_agree_is_narrower_than_unpaired(run: Path) -> None:
    base, after = _records(run, "full-0.001")
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


def _records(run: Path, arm: str) -> tuple[list, list]:  # type: ignore[type-arg]
    return read_records(run / "base" / "items.jsonl"), read_records(run / "arms" / arm / "items-20.jsonl")


def test_runs_are_cut_to_common_items_with_the_same_content(run: Path, tmp_path: Path) -> None:
    small = write_run(tmp_path / "sums-2", {"full-0.001": (0.3, 0.5)}, n=300)
    base = small / "base" / "items.jsonl"
    changed = [dataclasses.replace(r, options=("x", *r.options[1:])) if r.item == "7" and r.options else r
               for r in read_records(base)]  # fmt: skip
    write_records(base, changed)
    entries = read_runs([f"{run}:full-0.001", str(small)])
    assert [e.name for e in entries] == ["sums-1:full-0.001", "sums-2:full-0.001"]
    result = compare(entries, draws=200)
    assert result.items == {"kept": 299, "new": 150}
    assert any("suite kept: 299 items are common to all runs, of 400" in note for note in result.notes)
    assert any("base models answer differently" in note for note in result.notes)


def test_runs_with_nothing_in_common_are_named_and_not_compared(run: Path) -> None:
    first, second = read_runs([str(run)])
    moved = [dataclasses.replace(r, item=f"other {r.item}") for r in second.after]
    base = [dataclasses.replace(r, item=f"other {r.item}") for r in second.base]
    result = compare([first, dataclasses.replace(second, base=base, checkpoints={20: moved})], draws=200)
    assert result.differences == []
    assert any("suite kept: 0 items are common" in note for note in result.notes)
    assert "suite kept: 0 items" in format_comparison(result)


def test_a_run_without_a_base_is_measured_from_the_first_such_run(run: Path) -> None:
    """As folders of lm_eval samples are: the model before, then the models after."""
    base, after = _records(run, "full-0.001")
    bare = [ComparedRun("before", checkpoints={1: base}), ComparedRun("x", checkpoints={1: after})]
    (measured,) = share_base(bare)
    assert (measured.name, measured.base, measured.after) == ("x", base, after)
    assert [e.base for e in share_base(bare, after)] == [after, after]
    own = ComparedRun("own", base, {1: after})
    assert share_base([own]) == [own]
    with pytest.raises(CompareError, match="x has no base to be measured from"):
        share_base(bare[1:])


def test_equal_runs_do_not_differ(run: Path) -> None:
    base, after = _records(run, "full-0.001")
    result = compare([ComparedRun("x", base, {1: after}), ComparedRun("y", base, {1: after})], draws=200)
    (retention,) = (d for d in result.differences if d.figure == "retention")
    assert (retention.value.low, retention.value.high, retention.p) == (0, 0, 1)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".json"])
def test_a_study_export_is_read_with_and_without_its_run_folders(run: Path, tmp_path: Path, ending: str) -> None:
    card = {"gain": Estimate(0.4, 0.3, 0.5), "retention": Estimate(0.9)}
    rows, trials = [], []
    for number, (folder, seed) in enumerate(((str(run), 0), ("nowhere", 1))):
        flat = {
            f"{n}{end}": v for n, e in card.items() for end, v in (("", e.value), ("_low", e.low), ("_high", e.high))
        }
        rows.append({"trial": number, "seed": seed, "folder": folder, "arm": "full", "learning_rate": 0.001, **flat})
        result = ArmResult("full", "full", 0.001, "finished", scorecard=card).to_dict()
        trials.append({"number": number, "runs": [{"seed": seed, "folder": folder, "result": result}]})
    path = tmp_path / f"study{ending}"
    if ending == ".json":
        path.write_text(json.dumps({"trials": trials}), encoding="utf-8")
    elif ending == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path, index=False)
    here, gone = read_runs([str(path)])
    assert (here.name, gone.name) == ("trial 0 full-0.001 seed 0", "trial 1 full-0.001 seed 1")
    assert len(here.after) == 600
    assert dict(gone.figures) == card
    notes = compare([here, gone], draws=200).notes
    assert any("trial 1 full-0.001 seed 1 has no item records here" in note for note in notes)
    (run / "config.yaml").write_text("no: config\n")  # of another version: no stream is known, all else is
    with pytest.raises(CompareError, match=r"--base .*nowhere.* has no item records here"):
        read_runs([str(run)], str(_only(path, rows[1], trials[1], tmp_path / f"nowhere{ending}")))


def _only(path: Path, row: dict[str, object], trial: dict[str, object], to: Path) -> Path:
    """An export of one row whose run folder is on another machine."""
    if path.suffix == ".json":
        to.write_text(json.dumps({"trials": [trial]}), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame([row]).to_csv(to, index=False)
    else:
        pd.DataFrame([row]).to_parquet(to, index=False)
    return to


@pytest.mark.parametrize("page", [True, False])
@pytest.mark.slow
def test_files_hold_the_figures_of_the_table(run: Path, tmp_path: Path, page: bool) -> None:
    result = compare(read_runs([str(run)]), draws=200)
    path = write_comparison(result, tmp_path, page)
    text = path.read_text(encoding="utf-8")
    assert path.name == ("compare.html" if page else "compare.md")
    assert ("data:image/svg+xml;base64," in text) == page
    assert all(name in text for name in ARMS)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "compare.csv").read_text(encoding="utf-8").splitlines()))
    own = next(r for r in rows if (r["kind"], r["run"], r["figure"]) == ("figure", "full-0.001", "retention"))
    assert float(own["value"]) == result.cards["full-0.001"]["retention"].value
    assert comparison_csv(result).count("difference,") == len(result.differences)


@pytest.mark.slow
def test_the_command_line_prints_the_comparison_and_answers_wrong_names(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(run), "--draws", "200", "--out", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "retention at matched gain" in said
    assert "harmonic average" in said
    assert {path.name for path in tmp_path.iterdir()} == {"compare.html", "compare.png", "compare.csv"}
    assert main(["compare", str(run), "--draws", "200"]) == 0
    assert "with a picture: --out FOLDER" in capsys.readouterr().out
    assert main(["compare", str(run), "--reference", "contrl-0.001"]) == 2
    assert "did you mean 'control-0.001'?" in capsys.readouterr().err
    assert main(["compare", "no/such/run"]) == 2
    assert "'no/such/run' is no run" in capsys.readouterr().err
    assert main(["compare", f"{run}:control-0.001"]) == 2
    assert "two or more runs" in capsys.readouterr().err


def test_the_gate_passes_what_forgets_nothing_and_stops_what_forgets(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", str(run), "--margin", "0.02", "--arm", "control-0.001"]) == 0
    assert capsys.readouterr().out.startswith("pass  control-0.001: forgetting of facts0, facts1 .000")
    assert main(["gate", str(run), "--margin", "0.02"]) == 1
    assert [line[:4] for line in capsys.readouterr().out.splitlines()] == ["pass", "FAIL"]
    assert main(["gate", str(run), "--margin", "2"]) == 2
    assert "margin must be" in capsys.readouterr().err


def test_the_gate_allows_a_hundredth_where_no_margin_is_given(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", {"still-0.001": (0.0, 0.4), "slips-0.001": (0.03, 0.4)}, n=1000))
    assert main(["gate", run, "--arm", "still-0.001"]) == 0
    assert main(["gate", run, "--arm", "slips-0.001"]) == 1
    assert main(["gate", run, "--arm", "slips-0.001", "--margin", "0.05"]) == 0


def samples(folder: Path, rng: np.random.Generator, rates: dict[str, float], shots: int = 0) -> Path:
    """What `lm_eval --log_samples` leaves of tasks with 400 items each, answered right at these rates."""
    folder.mkdir()
    for task, rate in rates.items():
        lines = [
            {"doc_id": i, "doc_hash": f"{task} {i:04d}", "prompt_hash": f"{shots} {task} {i:04d}", "filter": "none",
             "metrics": ["acc"], "acc": float(rng.random() < rate), "arguments": [["q", " a"]], "target": "a",
             "filtered_resps": ["a"], "resps": [["a"]]}
            for i in range(400)
        ]  # fmt: skip
        file = folder / f"samples_{task}_2026-01-01T00-00-00.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_learned_task_of_lm_eval_does_not_pay_for_a_forgotten_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    before = samples(tmp_path / "before", rng, {"gsm8k": 0.2, "mmlu": 0.7, "arc": 0.7})
    after = samples(tmp_path / "after", rng, {"gsm8k": 0.9, "mmlu": 0.5, "arc": 0.9})
    command = ["gate", str(after), "--base", str(before), "--margin", "0.06"]
    assert main(command) == 0
    assert "forgetting of arc, gsm8k, mmlu -" in capsys.readouterr().out  # what was judged is said
    assert main([*command, "--new", "gsm*"]) == 0
    assert "forgetting of arc, mmlu " in capsys.readouterr().out
    assert main([*command, "--new", "gsm*", "--each-task"]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "pass  after", "pass  after, arc", "FAIL  after, mmlu",
    ]  # fmt: skip
    (entry,) = read_runs([str(after)], str(before), ["gsm*"])
    assert scorecard(entry.base, entry.after, 100)["gain"].value == pytest.approx(0.7, abs=0.1)


def test_items_that_were_asked_with_other_examples_do_not_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    before, after = (samples(tmp_path / str(shots), rng, {"mmlu": 0.7}, shots) for shots in (0, 5))
    assert main(["gate", str(after), "--base", str(before)]) == 2
    assert "was asked in other words in base and after" in capsys.readouterr().err


def test_what_was_made_of_an_arm_is_an_entry_too(run: Path, tmp_path: Path) -> None:
    here = tmp_path / run.name
    shutil.copytree(run, here)
    made = here / "posthoc" / "full-0.001-wise-0.5"
    shutil.copytree(here / "arms" / "full-0.001", made)
    (made / "items-10.jsonl").unlink()
    assert [e.name for e in read_runs([str(here)])] == [*sorted(ARMS), made.name]
    for named in (str(made), f"{here}:{made.name}"):
        (entry,) = read_runs([named])
        assert (entry.name, entry.after) == (made.name, _records(run, "full-0.001")[1])
        assert entry.base == _records(run, "full-0.001")[0]
    (arm,) = read_runs([str(here / "arms" / "control-0.001")])
    assert arm.name == "control-0.001"


def test_drift_on_replies_of_other_lengths_is_not_compared(run: Path) -> None:
    first, second = read_runs([str(run)])
    kl = [[Record("drift", "base replies", "kl", str(i), value=0.1, tokens=n) for i in range(9)] for n in (48, 8)]
    pair = [dataclasses.replace(e, checkpoints={20: [*e.after, *k]}) for e, k in zip((first, second), kl, strict=True)]
    result = compare(pair, draws=200)
    assert not any(d.figure == "kl" for d in result.differences)
    assert any("suite drift: 0 items are common" in note for note in result.notes)
    cut = [e for e in first.base if e.item != "0"], {20: [r for r in first.after if r.item != "0"]}
    notes = compare([first, ComparedRun("cut", *cut)], draws=200).notes
    assert not any("base models answer differently" in note for note in notes)  # of the same base, fewer items


def test_the_gate_stops_an_arm_that_failed_or_has_not_finished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"full-0.001": (0.0, 0.5), "half-0.001": (0.0, 0.5)}, n=40)
    (folder / "arms" / "half-0.001" / "result.json").unlink()
    failed = {"status": "failed", "reason": "loss became nan"}
    (folder / "arms" / "full-0.001" / "result.json").write_text(json.dumps(failed), encoding="utf-8")
    lines = [gate(entry, 0.5) for entry in read_runs([str(folder)])]
    assert lines[0] == (False, "FAIL  full-0.001: failed: loss became nan")
    assert lines[1] == (False, "FAIL  half-0.001: it has not finished")


def test_the_gate_needs_kept_records() -> None:
    base = [r for r in base_records(np.random.default_rng(0), 40) if r.suite == "new"]
    with pytest.raises(CompareError, match="has no records of kept tasks"):
        gate(ComparedRun("x", base, {1: trained(np.random.default_rng(1), base, 0.1, 0.1)}), 0.01, draws=100)
