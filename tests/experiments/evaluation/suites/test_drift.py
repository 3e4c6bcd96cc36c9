"""The prompts that replies are drawn to, and the text that is read as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.data.sources import ReasoningGym
from experiments.evaluation.kept_tasks.tasks import DEFAULT_TASKS, draw_questions
from experiments.evaluation.suites import SUITES
from experiments.evaluation.suites.drift import PROMPTS, DriftSuite
from experiments.evaluation.suites.text import text_windows
from tests.helpers.new_tasks import NOTES, sums
from tests.helpers.small_run import make_suite, small_config


def test_too_much_text_or_too_many_replies(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"suites\.text\.tokens=1000000, but the text has only \d+ tokens"):
        text_windows(tokenizer, 1_000_000)
    config = small_config(base, evaluation={"suites": {"drift": {"text_tokens": 1_000_000}}})
    with pytest.raises(ConfigError, match=r"suites\.drift\.text_tokens=1000000, but the text has only .*: lower it"):
        make_suite(DriftSuite, config, tokenizer)
    config = small_config(base, evaluation={"replies": 100})
    with pytest.raises(ConfigError, match=rf"drift\.replies=100, but there are only {len(PROMPTS)} general"):
        make_suite(DriftSuite, config, tokenizer)


def test_drift_asks_several_new_tasks_in_turn(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    config = small_config(base, evaluation={"replies": 2, "new_replies": 3})
    first, second = sums(), ReasoningGym(name="basic_arithmetic").held_out(4, 0)
    suite: Any = make_suite(SUITES["drift"], config, tokenizer, (first, second, NOTES))
    assert [task for task, _, _ in suite.prompts] == ["base replies"] * 2 + ["new_prompts"] * 3
    assert [item for _, item, _ in suite.prompts[2:]] == [first.test[0].id, second.test[0].id, first.test[1].id]
    assert suite.notes == []


@pytest.mark.parametrize(("asked", "said"), [(8, []), (50, ["50, but the new task has 4 held-out questions"])])
def test_fewer_questions_than_replies_that_are_asked_for_are_said(
    asked: int, said: list[str], base: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = small_config(base, evaluation={"replies": 2, "new_replies": asked})
    task = ReasoningGym(name="basic_arithmetic").held_out(4, 0)
    notes = make_suite(SUITES["drift"], config, tokenizer, (task,)).notes
    assert [note.partition(": new_replies: ")[2].partition(", so")[0] for note in notes] == said  # 8: the default


def test_drift_reads_natural_text_and_kept_answers_as_they_are(
    base: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    drift = {"replies": 1, "new_replies": 0, "reply_tokens": 4, "text_tokens": 300, "kept": 4}
    suite: Any = make_suite(DriftSuite, small_config(base, evaluation={"suites": {"drift": drift}}), tokenizer)
    with torch.no_grad():
        ready = suite.prepare(model, {}, None)
        same = list(ready.measure(model, lambda count: None))
        for p in model.parameters():
            p.mul_(1.1)
        records = list(ready.measure(model, lambda count: None))
    assert {record.value for record in same} == {0.0}
    counts = Counter(record.task for record in records)
    assert counts == {"base replies": 1, "text": 2, "kept plain": 16, "kept chat": 16}
    assert sum(record.tokens or 0 for record in records if record.task == "text") == 300 - 2
    assert all((record.value or 0) > 0 for record in records)
    assert ready.size == len(records) == len({(record.task, record.item) for record in records})
    assert len(ready.state()["replies"]) == 1  # what is given needs no state
    first = records[1]
    ids = torch.tensor([suite.given[0].reply.prompt + suite.given[0].reply.reply])
    with torch.no_grad():
        q = model(ids).logits[0, :-1].log_softmax(-1)
        for p in model.parameters():
            p.div_(1.1)
        p0 = model(ids).logits[0, :-1].log_softmax(-1)
    assert first.value == pytest.approx(float((p0.exp() * (p0 - q)).sum(-1).mean()), rel=1e-3)
    right = [one.reply.reply for one in suite.given if one.task == "kept plain"]
    answers = [question.template.right for question in draw_questions(DEFAULT_TASKS, 4, 0)]
    assert [str(tokenizer.decode(reply)).strip() for reply in right] == answers


def test_without_given_text_the_key_of_the_cache_is_that_of_earlier_versions(
    base: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain, more = ({"replies": 1, "new_replies": 0, "text_tokens": tokens} for tokens in (0, 64))
    keys = [
        make_suite(DriftSuite, small_config(base, evaluation={"suites": {"drift": one}}), tokenizer).content()
        for one in (plain, more)
    ]
    assert len(keys[0]) == 3
    assert keys[1][:3] == keys[0]


@pytest.mark.parametrize("tokens", [1, 63, -1])
def test_too_little_text_is_refused(tokens: int) -> None:
    with pytest.raises(ValidationError, match="text_tokens"):
        DriftSuite.Settings(text_tokens=tokens)
