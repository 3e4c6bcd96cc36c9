"""The gate stops what forgets more than a margin, what failed, and what cannot be judged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.main import main
from experiments.common.errors import CompareError
from experiments.common.files import write_json
from experiments.common.hashing import file_digest
from experiments.comparison.folders import ComparedRun
from experiments.comparison.gate import by_task, gate
from experiments.comparison.inputs import read_runs
from experiments.scorecard import scorecard
from tests.helpers.planted_run import base_records, lm_eval_samples, samples, trained, write_run


def test_the_gate_passes_what_forgets_nothing_and_stops_what_forgets(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", str(run), "--margin", "0.02", "--arm", "control-0.001"]) == 0
    assert capsys.readouterr().out.startswith("pass  control-0.001: forgetting of facts0, facts1 .000")
    assert main(["gate", str(run), "--margin", "0.02"]) == 1
    assert [line[:4] for line in capsys.readouterr().out.splitlines()] == ["pass", "FAIL"]
    assert main(["gate", str(run), "--margin", "2"]) == 2
    assert "margin must be" in capsys.readouterr().err


def test_a_base_that_answers_nothing_fails(run: Path) -> None:
    """There is nothing to forget: a gate that passes would show nothing."""
    (entry,) = read_runs([f"{run}:full-0.001"])
    wrong = [[dataclasses.replace(r, correct=0) if r.suite == "kept" else r for r in records]
             for records in (entry.base, entry.after)]  # fmt: skip
    passed, line = gate(dataclasses.replace(entry, base=wrong[0], checkpoints={20: wrong[1]}), 0.1, draws=200)
    assert not passed
    assert line.startswith("FAIL  full-0.001: its base answers none of the kept questions")


@pytest.mark.slow
def test_the_gate_allows_a_hundredth_where_no_margin_is_given(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", {"still-0.001": (0.0, 0.4), "slips-0.001": (0.03, 0.4)}, n=1000))
    assert main(["gate", run, "--arm", "still-0.001"]) == 0
    assert main(["gate", run, "--arm", "slips-0.001"]) == 1
    assert main(["gate", run, "--arm", "slips-0.001", "--margin", "0.05"]) == 0


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


def test_the_gate_stops_an_arm_that_failed_or_has_not_finished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"full-0.001": (0.0, 0.5), "half-0.001": (0.0, 0.5)}, n=40)
    (folder / "arms" / "half-0.001" / "result.json").unlink()
    failed = {"status": "failed", "reason": "loss became nan"}
    (folder / "arms" / "full-0.001" / "result.json").write_text(json.dumps(failed), encoding="utf-8")
    lines = [gate(entry, 0.5) for entry in read_runs([str(folder)])]
    assert lines[0] == (False, "FAIL  full-0.001: failed: loss became nan")
    assert lines[1] == (False, "FAIL  half-0.001: it has not finished")


def test_the_gate_judges_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm_eval_samples(tmp_path / "before" / "base", "2025-01-01", True)
    lm_eval_samples(tmp_path / "after" / "tuned", "2025-01-02", False)  # forgot everything
    lm_eval_samples(tmp_path / "after" / "base", "2025-01-03", True)  # the same --output_path, later
    command = ["--base", str(tmp_path / "before"), "--margin", "0.5"]
    assert main(["gate", str(tmp_path / "after"), *command]) == 2
    assert "several models or runs (base, tuned): name the folder of one" in capsys.readouterr().err
    assert main(["gate", str(tmp_path / "after" / "tuned"), *command]) == 1
    assert main(["gate", str(tmp_path / "after" / "base"), *command]) == 0


def test_a_task_without_a_verdict_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        lm_eval_samples(tmp_path / folder, "2025-01-01", True)
        lm_eval_samples(tmp_path / folder, "2025-01-01", True, "ifeval", metric="prompt_level_strict_acc")
        lm_eval_samples(tmp_path / folder, "2025-01-01", True, "wikitext", metric="word_perplexity")
    assert main(["gate", str(tmp_path / "b"), "--base", str(tmp_path / "a"), "--margin", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "forgetting of arc, ifeval .000" in said
    assert "left out: task wikitext of lm_eval gives word_perplexity" in said
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "b"), "--draws", "100"]) == 2
    assert main(["gate", str(tmp_path / "b"), "--base", str(tmp_path / "b")]) == 2
    assert "is the run itself" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["emptied", "removed", "half", "last step", "middle step"])
def test_a_damaged_run_never_passes(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its base records the first arm must not become the base of the others."""
    run = write_run(tmp_path / "run", {"a-0.001": (0.9, 0.5), "b-0.001": (0.0, 0.5), "c-0.001": (0.0, 0.5)}, n=40)
    (run / "config.yaml").touch()
    assert main(["gate", str(run), "--margin", "0.5", "--arm", "b-0.001"]) == 0
    items, arm = run / "base" / "items.jsonl", run / "arms" / "b-0.001"
    (arm / "result.json").write_text(
        json.dumps({"status": "finished", "steps": 20, "trajectory": [{"step": 0}, {"step": 10}]})
    )
    if what == "removed":
        items.unlink()
    elif "step" in what:
        (arm / f"items-{20 if what == 'last step' else 10}.jsonl").unlink()
    else:
        lines = items.read_text().splitlines(keepends=True)
        items.write_text("" if what == "emptied" else "".join(lines[: len(lines) // 2]))
    capsys.readouterr()
    assert main(["gate", str(run), "--margin", "0.5", "--arm", "b-0.001"]) == (1 if "step" in what else 2)
    out, err = capsys.readouterr()
    said = {"last step": "items-20.jsonl is missing", "middle step": "items-10.jsonl is missing", "half": "no partner"}
    assert said.get(what, "has no records of its base model: base/items.jsonl") in out + err
    if what in ("emptied", "removed"):
        assert main(["compare", str(run), "--draws", "100"]) == 2


def test_the_gate_needs_kept_records() -> None:
    base = [r for r in base_records(np.random.default_rng(0), 40) if r.suite == "new"]
    with pytest.raises(CompareError, match="has no records of kept tasks"):
        gate(ComparedRun("x", base, {1: trained(np.random.default_rng(1), base, 0.1, 0.1)}), 0.01, draws=100)


def test_what_may_change_answers_next_to_the_weights_is_said_once() -> None:
    base = base_records(np.random.default_rng(0), 40)
    run = ComparedRun("x", base, {1: base}, remark="asked in its own chat template")
    lines = [gate(part, 0.5, draws=100)[1] for part in [run, *by_task(run)]]
    assert [line.count("; asked in its own chat template") for line in lines] == [1, 0, 0]


def test_the_weights_that_were_kept_are_judged_and_not_those_of_the_last_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 20 forgets .3 of the right answers, step 10 half of that: who exports step 10 wants its verdict."""
    run = write_run(tmp_path / "run", {"full-0.001": (0.3, 0.5)})
    assert main(["gate", str(run), "--margin", "0.2"]) == 1
    write_json(run / "arms" / "full-0.001" / "trained" / "kept.json", {"step": 10})
    capsys.readouterr()
    assert main(["gate", str(run), "--margin", "0.2"]) == 0
    assert "forgetting at step 10, whose weights were kept, of facts0, facts1 .12" in capsys.readouterr().out
    assert main(["gate", str(run), "--margin", "0.2", "--each-task"]) == 0
    (entry,) = read_runs([str(run)])
    assert entry.remark == (
        "the figures are of step 20, but the weights that were kept of step 10 (training.keep: best)"
    )


@pytest.mark.parametrize("content", ['{"step": 20}', "{", None])
def test_a_changed_note_of_the_step_that_was_kept_does_not_let_the_last_step_be_judged(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", {"full-0.001": (0.0, 0.5)}, n=40)
    note, result = (run / "arms" / "full-0.001" / name for name in ("trained/kept.json", "result.json"))
    write_json(note, {"step": 10})
    noted = {note.relative_to(run).as_posix(): file_digest(note)}
    write_json(result, {"status": "finished", "reason": None, "made_from": noted})
    assert read_runs([str(run)])[0].kept == 10
    if content is None:
        note.unlink()
    else:
        note.write_text(content)
    assert main(["gate", str(run), "--margin", "0.5"]) == 2
    assert f"{note} is not the file that was written" in capsys.readouterr().err
    shutil.rmtree(note.parent)  # a study's file has no weights
    assert main(["gate", str(run), "--margin", "0.5"]) == 0


def test_an_arm_that_has_not_begun_stops_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was stopped after its first arm has no folder of the others; a measurement none of later models."""
    run, measured = (write_run(tmp_path / name, {"still-0.001": (0.0, 0.4)}) for name in ("run", "measured"))
    arms = [{"name": "still", "learning_rates": [1e-3, 1e-5]}, {"name": "later", "learning_rates": [0.01]}]
    (run / "config.yaml").write_text(json.dumps({"name": "run", "data": {}, "arms": arms}), encoding="utf-8")
    write_json(measured / "measure.json", {"arms": ["still-0.001", "served"]})
    for folder, names in ((run, ["still-1e-05", "later-0.01"]), (measured, ["served"])):
        assert main(["gate", str(folder), "--margin", "0.1"]) == 1
        first, *others = capsys.readouterr().out.splitlines()
        assert first.startswith("pass  still-0.001: ")
        assert others == [f"FAIL  {name}: it has not begun" for name in names]
    assert main(["gate", str(run), "--margin", "0.1", "--arm", "still-0.001"]) == 0
