"""What can be compared: runs, studies, results of lm_eval, and what was made of an arm."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.main import main
from experiments.common.errors import CompareError
from experiments.comparison.compare import compare
from experiments.comparison.folders import ComparedRun
from experiments.comparison.inputs import read_runs, share_base
from experiments.comparison.report import format_comparison
from experiments.records import Record, read_records, write_records
from tests.helpers.planted_run import lm_eval_samples, records_of, samples, write_run


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
    base, after = records_of(run, "full-0.001")
    bare = [ComparedRun("before", checkpoints={1: base}), ComparedRun("x", checkpoints={1: after})]
    (measured,) = share_base(bare)
    assert (measured.name, measured.base, measured.after) == ("x", base, after)
    assert [e.base for e in share_base(bare, after)] == [after, after]
    own = ComparedRun("own", base, {1: after})
    assert share_base([own]) == [own]
    with pytest.raises(CompareError, match="x has no base to be measured from"):
        share_base(bare[1:])


def test_items_that_were_asked_with_other_examples_do_not_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    before, after = (samples(tmp_path / str(shots), rng, {"mmlu": 0.7}, shots) for shots in (0, 5))
    assert main(["gate", str(after), "--base", str(before)]) == 2
    assert "was asked in other words in base and after" in capsys.readouterr().err


def test_colons_in_the_names_of_arms_and_folders(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a:b", {"r=16: 50-0.001": (0.0, 0.5)}, n=40)
    (entry,) = read_runs([f"{folder}:r=16: 50-0.001"])
    assert entry.name == "r=16: 50-0.001"
    with pytest.raises(CompareError, match=r"has no arm 'x': "):
        read_runs([f"{folder}:x"])


def test_learning_rates_of_arms_are_read_as_posthoc_reads_them(run: Path) -> None:
    for text in ("full-1e-3", "full-0.0010"):
        assert [entry.name for entry in read_runs([f"{run}:{text}"])] == ["full-0.001"]
    with pytest.raises(CompareError, match=r"has no arm 'full-0\.5': did you mean"):
        read_runs([f"{run}:full-5e-1"])


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


def test_a_pattern_of_new_that_no_task_has_is_named(tmp_path: Path) -> None:
    """A task that was learned would otherwise count as kept, and its gain would hide what was forgotten."""
    for name in ("before", "after"):
        lm_eval_samples(tmp_path / name, "2026-01-01", True, "gsm8k")
        lm_eval_samples(tmp_path / name, "2026-01-01", True, "arc")
    before, after = (str(tmp_path / name) for name in ("before", "after"))
    with pytest.raises(CompareError, match=r"--new gms8k\*: no task of these samples has such a name: arc, gsm8k"):
        read_runs([after], before, ["arc", "gms8k*"])
    (entry,) = read_runs([after], before, ["gsm8k*"])
    assert {record.task for record in entry.after if record.suite == "new"} == {"gsm8k"}
    assert entry.remark == ""
    assert main(["compare", before, after, "--new", "gsm8k*", "--draws", "100"]) == 0
    lm_eval_samples(tmp_path / "after", "2026-02-01", True, "arc")  # the model may be another one at the same path
    assert read_runs([after], before)[0].remark.startswith("measured by several runs of lm_eval (gsm8k 2026-01-01T00-")


def test_a_measurement_without_records_of_its_base_is_named_so(tmp_path: Path) -> None:
    """It was taken for samples of lm_eval: "run lm_eval with --log_samples"."""
    (tmp_path / "callback-x" / "arms" / "x").mkdir(parents=True)
    with pytest.raises(CompareError, match=r"callback-x has no records of its base model .*measure anew"):
        read_runs([str(tmp_path / "callback-x")])
