"""The contract that every suite of the table keeps."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.evaluation.suite import DrawnSuite, PreparedSuite
from experiments.evaluation.suites import SUITES
from experiments.models.modes import evaluating
from tests.helpers.byte_level import byte_tokenizer
from tests.helpers.lm_eval_tasks import write_tasks
from tests.helpers.new_tasks import NOTES, measured, sums
from tests.helpers.option_scores import FP32
from tests.helpers.small_run import draw_suites, make_suite, small_config

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
def suite(
    request: pytest.FixtureRequest, base: str, tokenizer: PreTrainedTokenizerBase, lm_eval_tasks: str
) -> DrawnSuite:
    settings: dict[str, Any] = SETTINGS.get(request.param, {})
    if request.param == "lm_eval":
        settings = {"new": ["sums"], "kept": ["colours"], "include_path": lm_eval_tasks, "limit": 2}
    config = small_config(base, evaluation={"suites": {request.param: settings}})
    return make_suite(SUITES[request.param], config, tokenizer, (sums(), NOTES))


def prepared(suite: DrawnSuite, model: PreTrainedModel, state: dict[str, Any]) -> PreparedSuite:
    with evaluating(model, FP32):
        return suite.prepare(model, state, None)


@pytest.mark.slow
def test_contract(suite: DrawnSuite, model: PreTrainedModel) -> None:
    assert SUITES[suite.name] is type(suite)
    assert suite.version >= 1
    ready = prepared(suite, model, {})
    assert ready.name == suite.name
    records, counts = measured(ready, model)
    assert sum(counts) == ready.size  # the progress bar ends where it should
    assert {record.suite for record in records} == SIDES.get(suite.name, {suite.name})
    assert len({record.key for record in records}) == len(records) > 0
    assert all((record.correct is None) != (record.value is None) for record in records)
    assert measured(ready, model)[0] == records


@pytest.mark.parametrize("name", SUITES)
def test_only_what_is_prepared_can_measure(name: str) -> None:
    """No order of calls to keep: a suite that needs the base model has `measure` on what `prepare` returns."""
    needs_base = "prepare" in vars(SUITES[name])
    assert needs_base == (name in ("drift", "alignment"))
    assert hasattr(SUITES[name], "measure") == issubclass(SUITES[name], PreparedSuite) == (not needs_base)


def test_content_is_json_and_always_the_same(suite: DrawnSuite, tokenizer: PreTrainedTokenizerBase) -> None:
    again = type(suite)(suite.settings, suite.context, tokenizer, (sums(), NOTES))
    assert suite.content() is not None  # else the base would be measured in every run
    assert json.dumps(again.content()) == json.dumps(suite.content())


@pytest.mark.slow
def test_state_makes_another_process_measure_the_same(
    suite: DrawnSuite, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    twin = type(suite)(suite.settings, suite.context, tokenizer, (sums(), NOTES))
    first = prepared(suite, model, {})
    again = prepared(twin, model, json.loads(json.dumps(first.state())))
    assert measured(again, model)[0] == measured(first, model)[0]


def test_only_the_named_suites_are_measured_in_their_order(
    base: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = small_config(base, evaluation={"suites": ["text", "new"], "perplexity_tokens": 64})
    evaluation = draw_suites(config, tokenizer, [sums()]).prepare(model, FP32)
    records = evaluation.evaluate(model, FP32, progress=False)
    assert [record.suite for record in records] == ["text"] + ["new"] * 4


READ_ALONE = ("text",)  # suites whose tokens get no start and that ask for no replies


@pytest.mark.parametrize("change", [{"bos": True}, {"eos": "<s>"}], ids=["a start of text", "another end of a reply"])
def test_content_changes_with_what_the_tokenizer_does(suite: DrawnSuite, change: dict[str, Any]) -> None:
    """Vocabulary and template are the same, so only the content can tell the two apart."""
    if suite.name in READ_ALONE or ("eos" in change and suite.name in ("kept", "alignment")):
        pytest.skip("reads the same tokens either way")
    was, now = (
        type(suite)(suite.settings, suite.context, byte_tokenizer(None, **{"eos": "</s>", **kind}), (sums(), NOTES))
        for kind in ({}, change)
    )
    assert was.content() != now.content()
