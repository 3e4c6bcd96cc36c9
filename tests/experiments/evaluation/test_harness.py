"""lm-evaluation-harness as a suite and as files: against sums by hand, offline, with tasks of our own."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from experiments.config import ConfigError, ExperimentConfig, parse_config
from experiments.evaluation.config import PRESETS, LmEvalConfig
from experiments.evaluation.harness import HarnessSuite, read_samples, to_records
from experiments.evaluation.suite import evaluating
from experiments.models import Precision, load_base
from experiments.records import Record, read_records, write_records
from experiments.run import run_experiment
from experiments.scorecard import scorecard
from tests.ctrl.families import perturb
from tests.experiments.evaluation.lm_eval_tasks import COLOURS, THINGS, write_tasks
from tests.experiments.small import small_values, tiny_base

FP32 = Precision("fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harness")
    tiny_base(path / "base")
    write_tasks(path / "tasks")
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_base(str(folder / "base"))[1]


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    """Wide weights: near-uniform logits would hide an error."""
    model = load_base(str(folder / "base"))[0]
    perturb(model, size=0.3)
    return model.eval()


def config_of(folder: Path, **settings: Any) -> ExperimentConfig:
    values = small_values(str(folder / "base"))
    local = {"new": ["sums"], "kept": ["colours"], "include_path": str(folder / "tasks")}
    values["evaluation"] |= {"suites": ["lm_eval"], "lm_eval": local | settings}
    return parse_config(values)


@pytest.fixture(scope="module")
def suite(folder: Path, tokenizer: PreTrainedTokenizerBase) -> HarnessSuite:
    return HarnessSuite(config_of(folder), tokenizer, [])


def measured(suite: HarnessSuite, model: PreTrainedModel, precision: Precision = FP32) -> list[Record]:
    with evaluating(model, precision):
        return list(suite.measure(model, lambda count: None))


def of(records: list[Record], task: str, form: str = "lm_eval") -> list[Record]:
    return [r for r in records if r.task == task and r.form == form]


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, option: str) -> float:
    before = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([tokenizer(f"{prompt} {option}")["input_ids"]])
    log_probs = model(ids).logits[0].float().log_softmax(-1)
    return sum(float(log_probs[t - 1, ids[0, t]]) for t in range(len(before), ids.shape[1]))


class TestMeasure:
    def test_multiple_choice_equals_the_sum_by_hand(
        self, suite: HarnessSuite, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        records = of(measured(suite, model), "colours")
        assert len(records) == 8
        for i, record in enumerate(records):
            scores = [log_likelihood(model, tokenizer, f"The colour of {THINGS[i]} is", c) for c in COLOURS]
            assert record.scores == pytest.approx(scores, abs=1e-3)
            assert record.options == tuple(COLOURS)
            assert record.choice == int(np.argmax(scores))
            assert record.answer == i % 4
            assert record.correct == (record.choice == record.answer)
        assert np.ptp([s for r in records for s in r.scores or ()]) > 1

    def test_generated(self, suite: HarnessSuite, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        records = measured(suite, model)
        strict, loose = of(records, "sums", "lm_eval strict"), of(records, "sums", "lm_eval loose")
        assert len(strict) == len(loose) == 8
        assert [r.item for r in strict] == [r.item for r in loose]
        assert [r.answer for r in strict] == [str(2 * a + 3) for a in range(1, 9)]
        ids = tokenizer("What is 1 + 4?\nAnswer:", return_tensors="pt")["input_ids"]
        new = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]  # type: ignore[operator]
        assert strict[0].reply == str(tokenizer.decode(new, skip_special_tokens=True)).split("\n")[0]

    def test_a_right_answer_is_right_and_an_unreadable_one_is_not(self, suite: HarnessSuite) -> None:
        """lm_eval's own filters and metric, on replies that we give."""
        task, found = suite.loaded["sums"], []
        for reply in (" 5", " 5 apples", "five"):
            for filtered in ("strict", "loose"):
                ensemble = next(f for f in task._filters if f.name == filtered)
                instance = task.construct_requests({"a": 1, "b": 4, "sum": 5}, "", metadata=("sums", 0, 1))
                instance.resps = [reply]
                ensemble.apply([instance])
                read = instance.filtered_resps[filtered]
                metrics = task.process_results({"a": 1, "b": 4, "sum": 5}, [read])
                sample = {"doc_id": 0, "filter": filtered, "doc_hash": "0" * 64, "metrics": list(metrics), **metrics}
                sample |= {"arguments": [("", {})], "filtered_resps": [read], "resps": [[reply]], "target": "5"}
                found += [(r.correct, r.parsed) for r in to_records("sums", [sample], "new")]
        assert found == [(1, True), (1, True), (0, False), (1, True), (0, False), (0, False)]

    def test_sides_and_keys(self, suite: HarnessSuite, model: PreTrainedModel) -> None:
        records = measured(suite, model)
        assert {(r.suite, r.task) for r in records} == {("new", "sums"), ("kept", "colours")}
        assert len({r.key for r in records}) == len(records) == 24

    def test_size_is_what_advance_counts(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        suite = HarnessSuite(config_of(folder, limit=3), tokenizer, [])
        seen: list[int] = []
        with evaluating(model, FP32):
            records = list(suite.measure(model, seen.append))
        assert sum(seen) == suite.size == 6
        assert len(records) == 3 + 2 * 3

    def test_bf16_is_kept(self, suite: HarnessSuite, model: PreTrainedModel) -> None:
        """lm_eval switches autocast off by itself; then the bf16 weights would not fit the fp32 states."""
        exact, rounded = (of(measured(suite, model, p), "colours") for p in (FP32, Precision("bf16")))
        gaps = [
            abs(a - b)
            for x, y in zip(exact, rounded, strict=True)
            for a, b in zip(x.scores or (), y.scores or (), strict=True)
        ]
        assert 0 < max(gaps) < 2

    def test_an_expanded_model(self, suite: HarnessSuite, folder: Path, model: PreTrainedModel) -> None:
        before = measured(suite, model)
        expanded = ctrl.expand(model, ctrl.ControlConfig(layers=2)).eval()
        assert measured(suite, expanded) == before
        perturb(expanded, size=0.3)
        assert measured(suite, expanded) != before

    def test_twice_the_same_and_everything_is_put_back(
        self, suite: HarnessSuite, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        model.train()
        weights = {name: p.clone() for name, p in model.named_parameters()}
        generation = model.generation_config.to_dict()  # type: ignore[union-attr]
        side = tokenizer.padding_side, tokenizer.pad_token
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        first = measured(suite, model)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert (np.random.get_state()[1] == states[2]).all()
        assert model.training
        assert all(torch.equal(p, weights[name]) and p.dtype == torch.float32 for name, p in model.named_parameters())
        assert model.generation_config.to_dict() == generation  # type: ignore[union-attr]
        assert (tokenizer.padding_side, tokenizer.pad_token) == side
        assert measured(suite, model) == first

    def test_fewshot_reaches_the_prompt(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        none = HarnessSuite(config_of(folder), tokenizer, [])
        two = HarnessSuite(config_of(folder, fewshot=2), tokenizer, [])
        assert of(measured(none, model), "colours")[0].scores != of(measured(two, model), "colours")[0].scores
        prompt = two.loaded["colours"].instances[0].arguments[0]
        assert prompt.count("The colour of") == 3
        assert none.loaded["colours"].instances[0].arguments[0].count("The colour of") == 1

    def test_chat_reaches_the_prompt(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        suite = HarnessSuite(config_of(folder, chat=True, limit=1), tokenizer, [])
        measured(suite, model)
        assert "<|im_start|>user\nThe colour of blood is" in suite.loaded["colours"].instances[0].arguments[0]

    def test_the_scorecard_takes_them(self, suite: HarnessSuite, model: PreTrainedModel) -> None:
        before = measured(suite, model)
        perturb(model, seed=5, size=0.3)
        card = scorecard(before, measured(suite, model), draws=100)
        assert {"gain", "retention", "nfr", "retention/colours", "parse_failures"} <= card.keys()


def test_dropout_is_the_same_with_and_without_evaluations_between(suite: HarnessSuite, folder: Path) -> None:
    """lm_eval's generators and evaluation mode must not reach the training, whose dropout draws from the same ones."""
    weights, moved = [], False
    for evaluates in (True, False):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(folder / "base", attention_dropout=0.5).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        ids, before = torch.arange(100, 140).view(4, 10), model.lm_head.weight.clone()
        for _ in range(3):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if evaluates:
                assert len(measured(suite, model)) == 24
        moved = not torch.equal(model.lm_head.weight, before)
        weights.append([p.detach() for p in model.parameters()])
    assert moved
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))


@pytest.mark.slow
def test_a_run_is_the_same_bit_for_bit_with_and_without_the_suites(folder: Path, tmp_path: Path) -> None:
    with_suites = config_of(folder).to_dict()
    with_suites["evaluation"]["suites"] = ["lm_eval", "alignment", "new"]
    without = config_of(folder).to_dict()
    without["evaluation"] |= {"suites": ["new"], "lm_eval": None}
    weights = []
    for values in (with_suites, without):
        outcome = run_experiment(parse_config(values), tmp_path, say=lambda text: None)
        assert [r.status for r in outcome.results] == ["finished", "finished"], outcome.results
        weights += [load_file(f) for f in sorted(outcome.folder.glob("arms/*/trained/model.safetensors"))]
        assert ("alignment_cka" in outcome.results[0].scorecard) == ("alignment" in values["evaluation"]["suites"])
    assert len(weights) == 4
    for one, two in zip(weights[:2], weights[2:], strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kept": ["colour"]}, r"unknown task 'colour'.*'colours'"),
            ({"kept": ["sums"]}, r"evaluation.lm_eval: sums cannot be new and kept"),
            ({"include_path": "/nowhere/at/all"}, r"include_path=/nowhere/at/all: no such folder"),
        ],
    )
    def test_faults_are_named(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(folder / "tasks" / "manager.py"))  # not its 16,000
        with pytest.raises(ConfigError, match=message):
            HarnessSuite(config_of(folder, **settings), tokenizer, [])

    def test_code_runs_only_when_asked_for(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        write_tasks(tmp_path)
        task = tmp_path / "sums.yaml"
        task.write_text(task.read_text() + "unsafe_code: true\n")
        settings = {"include_path": str(tmp_path)}
        with pytest.raises(ConfigError, match=r"sums runs code that the model wrote, on this machine: set run_code"):
            HarnessSuite(config_of(folder, **settings), tokenizer, [])
        assert HarnessSuite(config_of(folder, **settings, run_code=True), tokenizer, []).size == 16

    def test_nothing_to_measure(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"evaluation.lm_eval: needs `kept` or `new`"):
            config_of(folder, new=[], kept=[])

    @pytest.mark.parametrize("change", [{"lm_eval": None}, {"suites": ["new"]}])
    def test_section_and_suite_belong_together(self, folder: Path, change: dict[str, Any]) -> None:
        values = config_of(folder).to_dict()
        values["evaluation"] |= change
        with pytest.raises(ConfigError, match=r"`lm_eval` needs both its section .* and its name in `suites`"):
            parse_config(values)

    def test_a_suite_without_its_section(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        with pytest.raises(ConfigError, match=r"set evaluation.lm_eval, for example"):
            HarnessSuite(parse_config(small_values(str(folder / "base"))), tokenizer, [])

    def test_what_the_cache_goes_by(self, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        """Items, settings and the code of a task's functions; neither the batch size nor where a function lies."""

        def content(**settings: Any) -> str:
            return json.dumps(HarnessSuite(config_of(folder, **settings), tokenizer, []).content(), sort_keys=True)

        first = content()
        assert content() == first == content(batch_size=3)
        assert len({first, content(limit=7), content(fewshot=1), content(chat=True)}) == 4
        own = write_tasks(tmp_path)
        yaml_file, code, data = (tmp_path / name for name in ("sums.yaml", "own.py", "sums.jsonl"))
        text = yaml.safe_load(yaml_file.read_text())["doc_to_text"]
        yaml_file.write_text(yaml_file.read_text().replace(yaml.safe_dump({"doc_to_text": text}), ""))
        yaml_file.write_text(yaml_file.read_text() + "doc_to_text: !function own.text\n")
        code.write_text("def text(doc):\n    return str(doc['a'])\n")
        contents = [content(include_path=own), content(include_path=own)]
        code.write_text("HINT = 'now with a hint'\n" + code.read_text())
        contents.append(content(include_path=own))
        data.write_text(data.read_text().replace('"sum": 5', '"sum": 6'))
        contents.append(content(include_path=own))
        assert contents[0] == contents[1]
        assert len(set(contents)) == 3

    def test_presets(self, folder: Path) -> None:
        values = small_values(str(folder / "base"))
        values["evaluation"]["suites"] = ["lm_eval"]
        values["evaluation"]["lm_eval"] = {"preset": "paper_math", "limit": 7, "new": ["gsm8k"]}
        settings = parse_config(values).evaluation.lm_eval
        assert settings is not None
        assert settings.new == ("gsm8k",)
        assert {"arc_challenge", "mmlu", "mmlu_pro"} < set(settings.kept)
        assert (settings.limit, settings.fewshot) == (7, 0)
        for path in PRESETS.glob("*.yaml"):
            values["evaluation"]["lm_eval"] = {"preset": path.stem}
            assert parse_config(values).evaluation.lm_eval is not None
        values["evaluation"]["lm_eval"] = {"preset": "paper_maths"}
        with pytest.raises(ConfigError, match=r"unknown preset 'paper_maths': did you mean 'paper_math'"):
            parse_config(values)


@pytest.mark.slow
def test_every_task_of_the_presets_exists_in_lm_eval() -> None:
    """Nothing is downloaded: the index is made of the installed package's YAML files."""
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    presets = sorted(PRESETS.glob("*.yaml"))
    assert len(presets) == 3
    for path in presets:
        settings = LmEvalConfig(**yaml.safe_load(path.read_text()))
        assert {*settings.new, *settings.kept} <= known, path.name


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
        found = {r.key: r for r in read_samples(written, new=("su*",))}
        assert found.keys() == {r.key for r in live}
        for record in live:
            other = found[record.key]
            assert (other.correct, other.choice, other.answer) == (record.correct, record.choice, record.answer)
            assert (other.reply, other.parsed, other.options) == (record.reply, record.parsed, record.options)
            assert other.scores == pytest.approx(record.scores, abs=1e-4)

    def test_one_file_and_a_round_trip(self, written: Path, tmp_path: Path) -> None:
        (file,) = written.rglob("samples_colours_*.jsonl")
        records = read_samples(file)
        assert len(records) == 8
        assert {(r.suite, r.task) for r in records} == {("kept", "colours")}
        write_records(tmp_path / "items.jsonl", records)
        assert read_records(tmp_path / "items.jsonl") == records

    def test_two_folders_pair(self, written: Path) -> None:
        card = scorecard(read_samples(written), read_samples(written), draws=100)
        assert card["retention"].value == pytest.approx(1) or card["kept_accuracy"].value == 0
        assert card["nfr"].value == 0

    def test_the_latest_run_of_a_task_counts(self, written: Path, tmp_path: Path) -> None:
        (file,) = written.rglob("samples_colours_*.jsonl")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "samples_colours_2999-01-01T00-00-00.jsonl").write_text(
            file.read_text().splitlines()[0] + "\n"
        )
        (tmp_path / "samples_colours_2020-01-01T00-00-00.jsonl").write_text(file.read_text())
        assert len(read_samples(tmp_path)) == 1

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
