"""The contract that every suite of the table keeps, and the suite of the new task."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.hashing import text_id
from experiments.config import ExperimentConfig
from experiments.data.items import NewTask, NewText
from experiments.data.sources import ReasoningGym
from experiments.evaluation.suite import Suite
from experiments.evaluation.suites import SUITES
from experiments.models.modes import evaluating
from experiments.records import Record
from tests.helpers.lm_eval_tasks import write_tasks
from tests.helpers.models import FP32
from tests.helpers.small import draw_suites, make_suite, small_config

LONG = "The quick brown fox jumps over the lazy dog. " * 60  # more than two windows
NOTES = NewText("notes", ("A short note.", LONG))


@functools.cache
def sums() -> NewTask:
    return ReasoningGym(name="chain_sum").held_out(4, 0)


SETTINGS: dict[str, dict[str, Any]] = {
    "kept": {"items": 4},
    "instructions": {"items": 10},
    "drift": {"replies": 2, "reply_tokens": 4},
    "text": {"tokens": 64},
}
SIDES = {"lm_eval": {"new", "kept"}}  # what records say where it is not the suite's name


@pytest.fixture(scope="module")
def lm_eval_tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module", params=list(SUITES))
def suite(request: pytest.FixtureRequest, base: str, tokenizer: PreTrainedTokenizerBase, lm_eval_tasks: str) -> Suite:
    settings: dict[str, Any] = SETTINGS.get(request.param, {})
    if request.param == "lm_eval":
        settings = {"new": ["sums"], "kept": ["colours"], "include_path": lm_eval_tasks, "limit": 2}
    config = small_config(base, evaluation={"suites": {request.param: settings}})
    return make_suite(SUITES[request.param], config, tokenizer, (sums(), NOTES))


def measured(suite: Suite, model: PreTrainedModel) -> tuple[list[Record], list[int]]:
    counts: list[int] = []
    with evaluating(model, FP32):
        return list(suite.measure(model, counts.append)), counts


@pytest.mark.slow
def test_contract(suite: Suite, model: PreTrainedModel) -> None:
    assert SUITES[suite.name] is type(suite)
    assert suite.version >= 1
    with evaluating(model, FP32):
        suite.prepare(model, FP32)
    records, counts = measured(suite, model)
    assert sum(counts) == suite.size  # the progress bar ends where it should
    assert {record.suite for record in records} == SIDES.get(suite.name, {suite.name})
    assert len({record.key for record in records}) == len(records) > 0
    assert all((record.correct is None) != (record.value is None) for record in records)
    assert measured(suite, model)[0] == records


def test_content_is_json_and_always_the_same(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> None:
    again = type(suite)(suite.settings, suite.context, tokenizer, (sums(), NOTES))
    assert suite.content() is not None  # else the base would be measured in every run
    assert json.dumps(again.content()) == json.dumps(suite.content())


@pytest.mark.slow
def test_state_makes_another_process_measure_the_same(
    suite: Suite, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    twin = type(suite)(suite.settings, suite.context, tokenizer, (sums(), NOTES))
    with evaluating(model, FP32):
        suite.prepare(model, FP32)
        twin.restore(json.loads(json.dumps(suite.state())))
        twin.prepare(model, FP32)
    assert measured(twin, model)[0] == measured(suite, model)[0]


def test_only_the_named_suites_are_measured_in_their_order(
    base: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = small_config(base, evaluation={"suites": ["text", "new"], "perplexity_tokens": 64})
    evaluation = draw_suites(config, tokenizer, [sums()]).prepare(model, FP32)
    records = evaluation.evaluate(model, FP32, progress=False)
    assert [record.suite for record in records] == ["text"] + ["new"] * 4


class TestNewTask:
    def suite(self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, *tasks: NewTask | NewText) -> Suite:
        return make_suite(SUITES["new"], config, tokenizer, tasks)

    def test_nll_of_a_document_is_the_mean_over_its_windows(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        records, _ = measured(self.suite(config, tokenizer, NOTES), model)
        assert [(r.task, r.form, r.item) for r in records] == [
            ("notes", "nll", text_id("A short note.")),
            ("notes", "nll", text_id(LONG)),
        ]
        for text, record in zip(("A short note.", LONG), records, strict=True):
            ids = tokenizer(text)["input_ids"]
            total, tokens = 0.0, 0
            for start in range(0, len(ids), 256):
                window = torch.tensor([ids[start : start + 256]])
                with torch.no_grad():
                    log_probs = model(input_ids=window).logits[0].log_softmax(-1)
                total -= float(log_probs[:-1].gather(1, window[0, 1:, None]).sum())
                tokens += window.shape[1] - 1
            assert record.tokens == tokens
            assert record.value == pytest.approx(total / tokens, abs=1e-4)

    def test_a_document_of_one_token_predicts_nothing(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        records, counts = measured(self.suite(config, tokenizer, NewText("notes", ("a", "a b c"))), model)
        assert [r.item for r in records] == [text_id("a b c")]
        assert sum(counts) == 2

    def test_prompts_have_a_digest(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        records, _ = measured(self.suite(config, tokenizer, sums()), model)
        assert [r.prompt for r in records] == [text_id(item.question) for item in sums().test]


def test_drift_asks_several_new_tasks_in_turn(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    config = small_config(base, evaluation={"replies": 2, "new_replies": 3})
    first, second = sums(), ReasoningGym(name="basic_arithmetic").held_out(4, 0)
    suite: Any = make_suite(SUITES["drift"], config, tokenizer, (first, second, NOTES))
    assert [task for task, _, _ in suite.prompts] == ["base replies"] * 2 + ["new_prompts"] * 3
    assert [item for _, item, _ in suite.prompts[2:]] == [first.test[0].id, second.test[0].id, first.test[1].id]
