"""lm-evaluation-harness on the live model: against sums by hand, offline, with tasks of our own."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from experiments.config import parse_config
from experiments.evaluation.lm_eval_samples import to_records
from experiments.evaluation.suites.lm_eval import HarnessSuite
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.records import Record
from experiments.runs.run import run_experiment
from experiments.scorecard import scorecard
from tests.helpers.families import perturb
from tests.helpers.lm_eval_suite import FP32, config_of, harness, measured
from tests.helpers.lm_eval_tasks import COLOURS, THINGS

pytestmark = pytest.mark.slow


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
        assert len(set(new.tolist())) < len(new)  # which a penalty would forbid
        model.generation_config.update(repetition_penalty=1e4, no_repeat_ngram_size=1)  # type: ignore[union-attr]
        assert measured(suite, model) == records  # of two models each would have its own

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

    def test_each_record_has_the_text_of_its_question(self, suite: HarnessSuite, model: PreTrainedModel) -> None:
        records, questions = measured(suite, model), suite.questions()
        assert {(r.suite, r.task, r.item) for r in records} == questions.keys()
        texts = [questions["kept", "colours", r.item] for r in of(records, "colours")]
        assert texts == [f"The colour of {thing} is" for thing in THINGS]

    def test_size_is_what_progress_counts(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        suite = harness(folder, tokenizer, limit=3)
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
        none = harness(folder, tokenizer)
        two = harness(folder, tokenizer, fewshot=2)
        assert of(measured(none, model), "colours")[0].scores != of(measured(two, model), "colours")[0].scores
        assert measured(two, model) == measured(two, model)  # the same examples, for base and arms
        prompt = two.loaded["colours"].instances[0].arguments[0]
        assert prompt.count("The colour of") == 3
        assert none.loaded["colours"].instances[0].arguments[0].count("The colour of") == 1

    def test_chat_reaches_the_prompt(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        suite = harness(folder, tokenizer, chat=True, limit=1)
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


def test_a_run_is_the_same_bit_for_bit_with_and_without_the_suites(folder: Path, tmp_path: Path) -> None:
    with_suites = config_of(folder).to_flat()
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
