"""The new task: the loss of documents over their windows, and the digest of prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import normalizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.hashing import text_id
from experiments.config import ExperimentConfig, parse_config
from experiments.data.items import Item, NewTask, NewText, chat
from experiments.data.matching import exact_match
from experiments.data.tested import Measured
from experiments.evaluation.replies import GRADING
from experiments.evaluation.suite import Suite
from experiments.evaluation.suites import SUITES
from experiments.records import Record
from experiments.scorecard import scorecard
from tests.helpers.byte_level import byte_tokenizer
from tests.helpers.new_tasks import LONG, NOTES, measured, sums
from tests.helpers.small_run import make_suite, small_values


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

    def test_settings_of_replies_are_said_to_be_unread_if_nothing_replies(
        self, base: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        drawn = {"suites": {"new": {"samples": 2, "temperature": 1.0}}}
        plain, given = (parse_config(small_values(base, evaluation=one)) for one in ({"suites": {"new": {}}}, drawn))
        assert self.suite(given, tokenizer, NOTES).notes == [
            "suite new: samples, temperature not read: nothing of the new task is answered by a reply"
        ]
        assert self.suite(plain, tokenizer, NOTES).notes == self.suite(given, tokenizer, NOTES, sums()).notes == []

    def test_a_tokenizer_that_changes_right_replies_is_said(self, config: ExperimentConfig) -> None:
        tokenizer: Any = byte_tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("4", "5")
        task = NewTask("t", (Item("2+2?", "4"), Item("1+1?", "2")), exact_match)
        (said,) = self.suite(config, tokenizer, task).notes
        assert said.startswith("suite new: task t: the tokenizer turns 1 of 2 right replies into wrong ones, such as")

    def test_prompts_have_a_digest(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        records, _ = measured(self.suite(config, tokenizer, sums()), model)
        assert [r.prompt for r in records] == [text_id(item.question) for item in sums().test]


SAMPLED = {"samples": 3, "temperature": 0.7}


def asked(base: str, **settings: object) -> ExperimentConfig:
    values = small_values(base)
    values["evaluation"]["suites"] = {"new": settings}
    return parse_config(values)


def capitals(grader: object) -> NewTask:
    rows = [("Which city is the capital of France?", "Paris"), ("Which city is the capital of Japan?", "Tokyo")]
    items = tuple(Item(question, answer, {"options": ("Tokyo", "Paris", "Lima")}) for question, answer in rows)
    task = Measured(source="any", grader=grader).graded(NewTask("capitals", items, exact_match))
    assert isinstance(task, NewTask)
    return task


class TestSamples:
    def test_each_sample_is_a_form_of_its_own(
        self, base: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        suite = make_suite(SUITES["new"], asked(base, **SAMPLED), tokenizer, [sums()])
        records, counts = measured(suite, model)
        assert len(records) == sum(counts) == suite.size == 12
        assert {r.form for r in records} == {"sample 1", "sample 2", "sample 3"}
        assert len({r.key for r in records}) == 12
        assert len({r.reply for r in records}) == 12
        assert records == measured(suite, model)[0]

    def test_settings_are_in_the_key_and_in_digests_only_if_they_are_set(
        self, base: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        configs = [asked(base, **given) for given in ({}, {"samples": 1, "temperature": 0}, SAMPLED,
                                                      {"temperature": 0.7}, {"max_tokens": 9})]  # fmt: skip
        keys = [make_suite(SUITES["new"], config, tokenizer, [sums()]).content() for config in configs]
        assert keys[0] == keys[1]
        assert len({repr(key) for key in keys}) == len({config.digest() for config in configs}) == 4
        assert configs[0].to_dict()["evaluation"]["suites"]["new"] == {}
        assert parse_config(configs[2].to_dict()) == configs[2]

    def test_several_samples_need_a_temperature(self, base: str) -> None:
        with pytest.raises(ConfigError, match=r"samples: 3 greedy replies are all the same: set a temperature"):
            asked(base, samples=3)

    def test_intervals_are_over_questions(self) -> None:
        """Twice the same reply to each of 40 questions is no more evidence than once."""

        def records(right: int, forms: tuple[str, ...]) -> list[Record]:
            return [Record("new", "t", f, f"q{i}", correct=int(i < right)) for i in range(40) for f in forms]

        once, twice = ("sample 1",), ("sample 1", "sample 2")
        cards = [scorecard(records(10, forms), records(30, forms), draws=2000) for forms in (once, twice)]
        assert cards[0]["new_accuracy"] == cards[1]["new_accuracy"]
        gains = [card["gain"] for card in cards]
        assert gains[0].value == gains[1].value == 0.5
        widths = [(gain.high or 0) - (gain.low or 0) for gain in gains]
        assert widths[1] == pytest.approx(widths[0], rel=0.1)  # as if independent: .71 of it


class TestGraders:
    def test_a_grader_reads_the_whole_reply(
        self, base: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replies = ["I think it is Paris.", "Kyoto"]
        monkeypatch.setattr("experiments.evaluation.suites.new_task.generate_replies", lambda *args, **kwargs: replies)
        suite = make_suite(SUITES["new"], asked(base), tokenizer, [capitals("contains")])
        records, _ = measured(suite, model)
        assert [(r.correct, r.parsed, r.reply) for r in records] == [(1, True, replies[0]), (0, True, "Kyoto")]

    def test_a_choice_is_the_likeliest_option(
        self, base: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        suite = make_suite(SUITES["new"], asked(base, **SAMPLED), tokenizer, [capitals("choice")])
        records, counts = measured(suite, model)
        assert len(records) == sum(counts) == suite.size == 2
        for record, item in zip(records, capitals("choice").test, strict=True):
            assert record.scores is not None
            assert record.options is not None
            assert (record.form, record.item, record.reply) == ("chat", item.id, None)
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": item.question}], tokenize=True, add_generation_prompt=True
            )["input_ids"]
            by_hand = []
            for option in record.options:
                ids = [*prompt, *tokenizer(option)["input_ids"]]
                with torch.no_grad():
                    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                by_hand.append(float(log_p[torch.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]].mean()))
            assert record.scores == pytest.approx(by_hand, abs=1e-4)
            assert record.choice == by_hand.index(max(by_hand))
            assert record.correct == int(record.options[record.choice] == item.answer)

    def test_a_likelihood_is_that_of_the_reply_with_its_end(
        self, base: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> None:
        turns = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
        task = NewTask("chats", (chat(turns), Item("q", "a")), exact_match, grader="x", by_likelihood=True)
        suite = make_suite(SUITES["new"], asked(base, **SAMPLED), tokenizer, [task])
        records, counts = measured(suite, model)
        assert len(records) == sum(counts) == suite.size == 2
        assert [(r.form, r.item, r.correct) for r in records] == [("nll", item.id, None) for item in task.test]
        before, whole = (
            tokenizer.apply_chat_template(turns[:n], tokenize=True, add_generation_prompt=n == 3)["input_ids"]
            for n in (3, 4)
        )
        ids = whole[:-1]  # without the newline after the end of the turn
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        by_hand = -log_p[torch.arange(len(before) - 1, len(ids) - 1), ids[len(before) :]].mean().item()
        assert records[0].value == pytest.approx(by_hand, abs=1e-4)
        assert records[0].tokens == len(ids) - len(before)
        assert suite.longest >= len(ids)

    def test_the_grader_is_part_of_the_key(self, base: str, tokenizer: PreTrainedTokenizerBase) -> None:
        tasks = [capitals(grader) for grader in (None, "exact", "contains", "choice")]
        keys = [make_suite(SUITES["new"], asked(base), tokenizer, [task]).content() for task in tasks]
        assert len({repr(key) for key in keys}) == 4
        assert keys[0][0][:2] == ["capitals", "text"]
        assert keys[0][0][2] == GRADING  # records that were graded by other rules are not read
