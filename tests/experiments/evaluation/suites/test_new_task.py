"""The new task: the loss of documents over their windows, and the digest of prompts."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.hashing import text_id
from experiments.config import ExperimentConfig
from experiments.data.items import NewTask, NewText
from experiments.evaluation.suite import Suite
from experiments.evaluation.suites import SUITES
from tests.helpers.new_tasks import LONG, NOTES, measured, sums
from tests.helpers.small_run import make_suite


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
