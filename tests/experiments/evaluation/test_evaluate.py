"""The suites together: one record per item and form, and no trace left behind."""

from __future__ import annotations

import collections
import copy
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig
from experiments.data.sources import ReasoningGym
from experiments.evaluation.evaluate import Suites
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.records import Record
from tests.helpers.option_scores import BF16, FP32
from tests.helpers.small_run import draw_suites

pytestmark = pytest.mark.slow


class TestEvaluation:
    def test_one_record_per_item_and_form(self, suites: Suites, model: PreTrainedModel) -> None:
        evaluation = suites.prepare(model, FP32)
        records = evaluation.evaluate(model, FP32, progress=False)
        counts = collections.Counter((r.suite, r.form) for r in records)
        assert counts == {
            ("new", "generate"): 4,
            ("kept", "plain"): 16,
            ("kept", "chat"): 16,
            ("drift", "kl"): 6,
            ("text", "nll"): 1,
        }
        assert len({record.key for record in records}) == len(records)
        assert all(r.value == 0.0 and r.tokens == 4 for r in records if r.suite == "drift")
        assert all(r.correct == int(r.choice == r.answer) for r in records if r.suite == "kept")
        for record in records:
            if record.suite == "kept":
                assert record.scores is not None
                assert record.choice == int(np.argmax(record.scores))
                assert record.options is not None
                assert len(record.options) == len(record.scores) == 4

    def test_evaluating_again_gives_the_same(self, suites: Suites, model: PreTrainedModel) -> None:
        evaluation = suites.prepare(model, BF16)
        assert evaluation.evaluate(model, BF16, progress=False) == evaluation.evaluate(model, BF16, progress=False)

    def test_parts_alone(self, suites: Suites, model: PreTrainedModel) -> None:
        evaluation = suites.prepare(model, FP32)
        together = evaluation.evaluate(model, FP32, progress=False)
        alone: list[Record] = []
        for part in evaluation.suites:
            records = evaluation.evaluate(model, FP32, (part,), progress=False)
            assert {record.suite for record in records} == {part}
            alone += records
        assert alone == together

    def test_correct_replies_count(
        self, suites: Suites, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        evaluation = suites.prepare(model, FP32)
        first, second, *_ = evaluation.suites["new"].tasks[0].test
        replies = [f"It is {first.answer}.", str(int(second.answer) + 1), "No idea", ""]
        monkeypatch.setattr("experiments.evaluation.suites.new_task.generate_replies", lambda *args, **kwargs: replies)
        records = evaluation.evaluate(model, FP32, ("new",), progress=False)
        assert [(r.correct, r.parsed) for r in records] == [(1, True), (0, True), (0, False), (0, False)]
        assert [r.reply for r in records] == replies

    def test_a_changed_model_has_moved(self, suites: Suites, model: PreTrainedModel) -> None:
        evaluation = suites.prepare(model, FP32)
        before = evaluation.evaluate(model, FP32, ("drift", "text"), progress=False)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.normal_()
        after = evaluation.evaluate(model, FP32, ("drift", "text"), progress=False)
        assert all(r.value is not None and r.value > 1e-6 for r in after if r.suite == "drift")
        assert [r.value for r in before if r.suite == "text"] != [r.value for r in after if r.suite == "text"]

    def test_an_expanded_model_starts_where_the_base_is(self, suites: Suites, model: PreTrainedModel) -> None:
        evaluation = suites.prepare(model, FP32)
        twin = ctrl.expand(copy.deepcopy(model), ctrl.ControlConfig(layers=2))
        records = evaluation.evaluate(twin, FP32, ("kept", "drift"), progress=False)
        base = evaluation.evaluate(model, FP32, ("kept", "drift"), progress=False)
        assert [r.choice for r in records] == [r.choice for r in base]
        assert all(abs(r.value or 0) < 1e-6 for r in records if r.suite == "drift")

    @pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
    def test_leaves_no_trace(self, suites: Suites, model: PreTrainedModel, precision: Precision) -> None:
        evaluation = suites.prepare(model, precision)
        model.train()
        model.model.layers[0].eval()
        modes = [module.training for module in model.modules()]
        tensors = {name: parameter.data for name, parameter in model.named_parameters()}
        values = {name: data.clone() for name, data in tensors.items()}
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        evaluation.evaluate(model, precision, progress=False)
        assert [module.training for module in model.modules()] == modes
        for name, parameter in model.named_parameters():
            assert parameter.data_ptr() == tensors[name].data_ptr()
            assert torch.equal(parameter, values[name])
            assert parameter.requires_grad
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]
        assert "forward" not in vars(model.lm_head)
        model(input_ids=torch.arange(5)[None], labels=torch.arange(5)[None]).loss.backward()  # training goes on

    def test_weights_come_back_after_an_error(self, model: PreTrainedModel) -> None:
        model.train()
        inside = []

        def fail() -> None:
            with evaluating(model, BF16):
                inside.append((model.training, model.model.layers[0].mlp.up_proj.weight.dtype))
                raise RuntimeError("in between")

        with pytest.raises(RuntimeError, match="in between"):
            fail()
        assert inside == [(False, torch.bfloat16)]
        assert model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def test_bf16_weights_give_the_results_of_autocast(self, model: PreTrainedModel) -> None:
        ids = torch.arange(40)[None]
        with torch.no_grad(), BF16.autocast():
            expected = model(ids).logits
        with evaluating(model, BF16):
            assert torch.equal(model(ids).logits, expected)

    def test_suites_that_need_no_base(self, suites: Suites, model: PreTrainedModel) -> None:
        alone = suites.without_base()
        assert list(alone.suites) == ["new", "kept", "text"]
        expected = suites.prepare(model, FP32).evaluate(model, FP32, ("new", "kept", "text"), progress=False)
        assert alone.evaluate(model, FP32, progress=False) == expected

    @pytest.mark.parametrize("part", ["kept", "drift", "text", "new"])
    def test_a_broken_model_is_no_result(self, suites: Suites, model: PreTrainedModel, part: str) -> None:
        evaluation = suites.prepare(model, FP32)
        with torch.no_grad():
            model.model.norm.weight.fill_(math.nan)
        with pytest.raises(RuntimeError, match="logits are not finite"):
            evaluation.evaluate(model, FP32, (part,), progress=False)

    def test_unknown_suite(self, suites: Suites, model: PreTrainedModel) -> None:
        with pytest.raises(ConfigError, match="unknown suite 'kep': did you mean 'kept'"):
            suites.prepare(model, FP32).evaluate(model, FP32, ("kep",))

    def test_restored_replies_are_used(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tmp_path: Path
    ) -> None:
        task = [ReasoningGym(name="chain_sum").held_out(4, 0)]
        first = draw_suites(config, tokenizer, task).prepare(model, FP32)
        state = json.loads(json.dumps(first.state()))
        state["drift"]["replies"][0]["reply"] = [7, 8]  # what this model would never write: restored, not written anew
        second = draw_suites(config, tokenizer, task).prepare(model, FP32, state=state)
        assert second.suites["drift"].replies[0].reply == (7, 8)
        assert second.suites["drift"].replies[1] == first.suites["drift"].replies[1]
        assert second.suites["drift"].references[0].shape == (2, len(tokenizer))

    def test_restored_replies_of_another_config(self, suites: Suites, model: PreTrainedModel) -> None:
        with pytest.raises(ConfigError, match=r"has 1 base replies, but .* evaluation\.suites\.drift ask for 6"):
            suites.prepare(model, FP32, state={"drift": {"replies": [{"prompt": [1], "reply": [2]}]}})
