"""Suite `kept`: free replies next to likelihoods."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.config import ExperimentConfig, parse_config
from experiments.evaluation.suites.kept import KeptSuite
from experiments.scorecard import scorecard
from tests.helpers.option_scores import FP32
from tests.helpers.small_run import draw_suites, make_suite, small_values


def kept_config(base: str, generated: bool) -> ExperimentConfig:
    values = small_values(base)
    values["evaluation"]["suites"] = {"kept": {"items": 4, "generated": generated}}
    return parse_config(values)


@pytest.fixture
def config(base: str) -> ExperimentConfig:
    return kept_config(base, generated=True)


def test_chats_are_answered_in_words_too(
    config: ExperimentConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suites = draw_suites(config, tokenizer)
    evaluation = suites.prepare(model, FP32)
    suite = evaluation.suites["kept"]
    assert isinstance(suite, KeptSuite)
    right = [f"Well: {question.options[question.answer]}." for question in suite.questions]
    wrong = [
        next(o for o in question.options if o != question.options[question.answer]) for question in suite.questions
    ]
    asked: list[list[str]] = []

    def replies(model: object, tokenizer: object, questions: list[str], most: int, progress: object) -> list[str]:
        asked.append(questions)
        return [*right[:10], *wrong[10:15], "I do not know."]

    monkeypatch.setattr("experiments.evaluation.replies.generate_replies", replies)
    records = evaluation.evaluate(model, FP32)
    assert asked == [[question.template.chat for question in suite.questions]]
    assert suite.size == len(records) == 3 * 16
    own = [record for record in records if record.form == "generate"]
    assert [record.correct for record in own] == [1] * 10 + [0] * 6
    assert [record.parsed for record in own] == [True] * 15 + [False]
    card = scorecard(records, records, draws=100)
    assert card["kept_accuracy_generated"].value == 10 / 16
    assert card["kept_parse_failures"].value == 1 / 16
    likelihoods = [record.correct or 0 for record in records if record.form != "generate"]
    assert card["kept_accuracy_likelihood"].value == sum(likelihoods) / 32
    (again,) = suites.reworded().suites.values()
    assert again.size == 2 * 16


def test_what_it_generates_is_the_models_reply(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    own = [r for r in draw_suites(config, tokenizer).prepare(model, FP32).evaluate(model, FP32) if r.form == "generate"]
    assert len({(record.task, record.item) for record in own}) == 16
    assert all(record.reply is not None and record.options is None for record in own)


def test_the_cache_does_not_give_one_for_the_other(
    base: str, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    generated, plain = (make_suite(KeptSuite, one, tokenizer) for one in (config, kept_config(base, generated=False)))
    assert generated.content() != plain.content()
