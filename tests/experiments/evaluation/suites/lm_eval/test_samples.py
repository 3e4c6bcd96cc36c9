"""Files that lm_eval writes, as records: the same as the live model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.evaluation.lm_eval_samples import read_samples, to_records
from experiments.evaluation.suites.lm_eval import HarnessSuite
from experiments.models.base import load_base
from experiments.records import Record, read_records, write_records
from experiments.scorecard import scorecard
from tests.helpers.lm_eval_suite import measured

pytestmark = pytest.mark.slow


class TestFiles:
    @pytest.fixture(scope="class")
    def written(self, folder: Path) -> Path:
        """What lm_eval itself writes for the untouched base, with its own loading, evaluation and writer."""
        from lm_eval.evaluator import evaluate
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        tasks = TaskManager(include_path=str(folder / "tasks"), include_defaults=False).load(["sums", "colours"])
        results = evaluate(HFLM(pretrained=str(folder / "base"), device="cpu"), tasks, bootstrap_iters=0)
        assert results is not None
        samples = results.pop("samples")  # type: ignore[misc]
        out = folder / "out"
        tracker = EvaluationTracker(output_path=str(out))
        tracker.save_results_aggregated(results=results, samples=samples)  # type: ignore[arg-type]
        for task in ("sums", "colours"):
            tracker.save_results_samples(task_name=task, samples=samples[task])
        return out

    @pytest.fixture
    def live(self, suite: HarnessSuite, folder: Path) -> list[Record]:
        return measured(suite, load_base(str(folder / "base"))[0])

    def test_are_what_the_live_model_gives(self, written: Path, live: list[Record]) -> None:
        found = {r.key: r for r in read_samples(written, new=("su*",)).records}
        assert found.keys() == {r.key for r in live}
        for record in live:
            other = found[record.key]
            assert (other.correct, other.choice, other.answer) == (record.correct, record.choice, record.answer)
            assert (other.reply, other.parsed, other.options) == (record.reply, record.parsed, record.options)
            assert other.scores == pytest.approx(record.scores, abs=1e-4)

    def test_one_file_and_a_round_trip(self, written: Path, tmp_path: Path) -> None:
        (file,) = written.rglob("samples_colours_*.jsonl")
        records = read_samples(file).records
        assert len(records) == 8
        assert {(r.suite, r.task) for r in records} == {("kept", "colours")}
        write_records(tmp_path / "items.jsonl", records)
        assert read_records(tmp_path / "items.jsonl") == records

    def test_two_folders_pair(self, written: Path) -> None:
        card = scorecard(read_samples(written).records, read_samples(written).records, draws=100)
        assert card["retention"].value == pytest.approx(1) or card["kept_accuracy"].value == 0
        assert card["nfr"].value == 0

    def test_the_latest_run_of_a_task_counts(self, written: Path, tmp_path: Path) -> None:
        (file,) = written.rglob("samples_colours_*.jsonl")
        (tmp_path / "samples_colours_2999-01-01T00-00-00.jsonl").write_text(file.read_text().splitlines()[0] + "\n")
        (tmp_path / "samples_colours_2020-01-01T00-00-00.jsonl").write_text(file.read_text())
        assert len(read_samples(tmp_path).records) == 1

    def test_equal_documents_are_numbered(self, written: Path) -> None:
        (file,) = written.rglob("samples_colours_*.jsonl")
        sample = json.loads(file.read_text().splitlines()[0])
        twice = to_records("colours", [sample, {**sample, "doc_id": 9}], "kept")
        assert [r.item for r in twice] == [sample["doc_hash"][:12], f"{sample['doc_hash'][:12]}-2"]

    def test_faults_are_named(self, written: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"holds no samples_\*.jsonl: run lm_eval with --log_samples"):
            read_samples(tmp_path)
        (tmp_path / "items.jsonl").touch()
        with pytest.raises(ValueError, match=r"is not named samples_<task>_<date>.jsonl"):
            read_samples(tmp_path / "items.jsonl")
        broken = tmp_path / "samples_colours_2020-01-01T00-00-00.jsonl"
        broken.write_text('{"doc_id": 0}\n')
        with pytest.raises(ValueError, match="does not hold lm_eval's samples"):
            read_samples(broken)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"metrics": ["perplexity"], "perplexity": -3.0}, "gives perplexity, none of which says"),
            ({"metrics": ["acc"], "acc": 0.5}, "acc=0.5 of an item is neither 0 nor 1"),
        ],
    )
    def test_items_that_are_neither_right_nor_wrong(self, change: dict[str, Any], message: str) -> None:
        sample = {"doc_id": 0, "filter": "none", "doc_hash": "ab", "arguments": [], "filtered_resps": [], "target": ""}
        with pytest.raises(ValueError, match=message):
            to_records("text", [{**sample, **change}], "kept")


@pytest.mark.parametrize(
    ("metrics", "form"),
    [(["acc", "acc_norm"], "lm_eval"), (["acc_norm"], "lm_eval acc_norm"), (["exact_match"], "lm_eval")],
)
def test_verdicts_of_other_metrics_do_not_pair(metrics: list[str], form: str) -> None:
    sample = {"doc_id": 0, "doc_hash": "a" * 40, "prompt_hash": "b" * 40, "filter": "none", "metrics": metrics}
    answer = {"target": "x", "arguments": [["q", " x"]], "resps": [[["x"]]], "filtered_resps": ["x"], "doc": {}}
    (record,) = to_records("task", [{**sample, **answer, **dict.fromkeys(metrics, 1.0)}], "kept")
    assert (record.form, record.correct) == (form, 1)


@pytest.mark.parametrize(("metric", "choice"), [("acc", 0), ("acc_norm", 1)])
def test_the_choice_is_the_one_that_the_metric_judges(metric: str, choice: int) -> None:
    """Sums of -4 and -5 over 2 and 8 characters: the first is likelier, the second by character."""
    sample = {"doc_id": 0, "doc_hash": "a" * 40, "prompt_hash": "b" * 40, "filter": "none", "metrics": [metric]}
    asked = {"target": 1, "arguments": [["q", " no"], ["q", " perhaps!"]], "resps": [], "doc": {}}
    given = {"filtered_resps": [[-4.0, False], [-5.0, False]], metric: float(choice == 1)}
    (record,) = to_records("task", [{**sample, **asked, **given}], "kept")
    assert (record.choice, record.correct, record.scores) == (choice, int(choice == 1), (-4.0, -5.0))


@pytest.mark.parametrize("texts", [True, False])
def test_digits_are_the_text_of_an_option_or_its_number(texts: bool, tmp_path: Path) -> None:
    """lm_eval takes a text of a column as that of an option, and an int as its number; its files hold both as text."""
    options, samples = ["1", "2", "3", "4"], []
    for i, said in enumerate([0, 1, 3, 3]):  # the last is wrong
        right = min(said, 2) if i == 3 else said
        scores = [[0.0 if j == said else -1.0, False] for j in range(4)]
        target: Any = options[right] if texts else right
        own = {"doc_id": i, "doc_hash": f"{i}" * 40, "prompt_hash": "b" * 40, "filter": "none", "metrics": ["acc"]}
        asked = {"arguments": [["q", f" {one}"] for one in options], "target": target, "resps": [], "doc": {}}
        samples.append({**own, **asked, "filtered_resps": scores, "acc": float(said == right)})
    live = to_records("task", samples, "kept")
    assert [r.options[r.answer] if isinstance(r.answer, int) else r.answer for r in live if r.options] == list("1243")
    for one in samples:
        rows = {
            f"gen_args_{i}": dict(zip(("arg_0", "arg_1"), row, strict=True)) for i, row in enumerate(one["arguments"])
        }
        one |= {"arguments": rows, "target": str(one["target"])}
    file = tmp_path / "samples_task_2026-01-01T00-00-00.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in samples))
    assert read_samples(file).records == live
