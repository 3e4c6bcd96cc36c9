"""The divergence in the loss of an expanded model: over real tokens, under checkpointing, without labels."""

from __future__ import annotations

import contextlib
import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BartForCausalLM, GenerationConfig, GPT2ForSequenceClassification, LlamaForCausalLM

import ctrl
from ctrl.control_model import control_class
from tests.helpers.tiny_llama import disturbed, expanded, sequences, tiny


def test_loss_is_lm_loss_plus_weighted_mean_over_real_tokens() -> None:
    """Layer 0 alone is expanded, so both branches see the embeddings and a is the base model's first hidden state."""
    model = expanded(layers=[0])
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    b: list[torch.Tensor] = []
    model.model.layers[0].expanded.register_forward_hook(lambda module, inputs, output: b.append(output))
    out = model(**batch)
    with ctrl.pretrained(model):
        base = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    expected = (b[0] - base.hidden_states[1]).square().mean(-1)[real].mean()
    torch.testing.assert_close(out.divergence, expected)
    torch.testing.assert_close(out.loss, out.lm_loss + 5.0 * expected)
    assert expected > 0


@pytest.mark.parametrize("cls", [BartForCausalLM, GPT2ForSequenceClassification])
def test_trainer_gives_no_total_to_a_loss_that_reads_none(cls: Any) -> None:
    assert control_class(cls).accepts_loss_kwargs is False
    assert not hasattr(control_class(LlamaForCausalLM), "accepts_loss_kwargs")


def test_without_labels_nothing_is_added() -> None:
    model = expanded().eval()
    out = model(input_ids=sequences()[0]["input_ids"][None])
    assert out.loss is None
    assert not hasattr(out, "divergence")
    assert model.control.current is None


def test_padding_does_not_change_the_divergence() -> None:
    model = expanded().eval()
    row = sequences()[1]
    length = int(row["attention_mask"].sum())
    padded = model(**{k: v[None] for k, v in row.items()})
    bare = model(**{k: v[None, :length] for k, v in row.items()})
    torch.testing.assert_close(padded.divergence, bare.divergence)
    left = {k: torch.cat([torch.full((3,), -100 if k == "labels" else 0), v[:length]])[None] for k, v in row.items()}
    torch.testing.assert_close(model(**left).divergence, bare.divergence)


@pytest.mark.parametrize("values", [{"divergence": "none"}, {"divergence_weight": 0.0}, {"structure": "stack"}])
def test_where_no_divergence_is_wanted_none_is_missed(values: dict[str, Any]) -> None:
    ids = sequences()[0]["input_ids"][None]
    model = ctrl.expand(tiny(), ctrl.ControlConfig(**{"layers": 2, "interpolation": "proj", **values})).train()
    other = expanded().train()
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    model(**batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)  # P of proj is frozen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids)
        with torch.no_grad():
            other(ids)
        with ctrl.pretrained(other):
            other(ids)
        other.eval()(ids)
    with pytest.warns(UserWarning, match="Pass the labels to the model"):
        other.train()(ids)


class LossSetLater(LlamaForCausalLM):
    def forward(self, input_ids: Any = None, labels: Any = None, **given: Any) -> Any:
        out = super().forward(input_ids, **given)
        if labels is not None:
            out.loss = self.loss_function(out.logits, labels, self.config.vocab_size, **given)
        return out


def test_a_loss_that_a_forward_sets_on_its_output_is_the_lm_loss() -> None:
    """The first field of such an output is the logits."""
    model, other = expanded(), LossSetLater(tiny().config)
    other.load_state_dict(tiny().state_dict())
    ctrl.expand(other, model.control.config).load_state_dict(model.state_dict())
    ids = sequences()[0]["input_ids"][None]
    wanted, found = (one(input_ids=ids, labels=ids) for one in (model, other))
    for name in ("loss", "lm_loss", "divergence"):
        torch.testing.assert_close(found[name], wanted[name])


def test_deepcopy_after_a_forward_is_independent() -> None:
    model = expanded()
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    out = model(**batch)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(**batch).loss, out.loss)
    with ctrl.pretrained(copied):
        assert model.control.enabled
        assert not copied.control.enabled


class TestGenerationThatCannotWork:
    """Early exit stops between the layers."""

    @pytest.mark.parametrize("how", ["argument", "config", "own config"])
    def test_early_exit_is_refused_before_it_changes_the_config(self, how: str) -> None:
        model, ids = expanded().eval(), torch.tensor([[1, 2, 3]])
        kwargs: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
        want = model.generate(ids, **kwargs)
        if how == "own config":
            model.generation_config.assistant_early_exit = 2
        early: dict[str, Any] = {"argument": {"assistant_early_exit": 2, **kwargs}, "own config": kwargs}.get(
            how, {"generation_config": GenerationConfig(assistant_early_exit=2, **kwargs)}
        )
        with pytest.raises(ctrl.ConfigError, match="assistant_early_exit counts the layers in the cache"):
            model.generate(ids, **early)
        model.generation_config.assistant_early_exit = None
        assert torch.equal(model.generate(ids, **kwargs), want)

    def test_the_pretrained_model_keeps_both(self) -> None:
        model, base, ids = expanded().eval(), tiny().eval(), torch.tensor([[1, 2, 3]])
        kwargs: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "assistant_early_exit": 2}
        with ctrl.pretrained(model):
            assert torch.equal(model.generate(ids, **kwargs), base.generate(ids, **kwargs))


@pytest.mark.parametrize("rows", [96, 100])
def test_new_rows_of_the_embeddings_are_said_to_be_frozen(rows: int) -> None:
    """Scripts call it with the tokenizer's size, which is most often the model's."""
    model = expanded()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.resize_token_embeddings(rows, mean_resizing=False)
    assert any("now have 100 rows in place of 96, frozen" in str(w.message) for w in seen) == (rows > 96)
    assert model.get_input_embeddings().num_embeddings == rows


@pytest.mark.parametrize("asked", ["argument", "config", "generate", "pretrained", "hidden states"])
def test_attentions_that_are_not_those_of_copies_are_said_once(asked: str) -> None:
    model = expanded().eval()
    model.set_attn_implementation("eager")
    ids = torch.arange(1, 6)[None]
    model.config.output_attentions = asked == "config"
    given = {"output_attentions": True} if asked in ("argument", "pretrained") else {}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            with ctrl.pretrained(model) if asked == "pretrained" else contextlib.nullcontext():
                model(ids, output_hidden_states=True, **given)
            if asked == "generate":
                model.generate(ids, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
    found = sum("returns those of the pretrained layers" in str(w.message) for w in seen)
    assert found == (asked in ("argument", "config", "generate"))


@pytest.mark.parametrize(
    "use", [ctrl.describe, ctrl.reference, ctrl.merge_back, ctrl.unload, lambda both: ctrl.pretrained(both).__enter__()]
)
def test_of_two_expanded_models_in_one_module_none_is_chosen(use: Any) -> None:
    policy = expanded()
    both = torch.nn.ModuleDict({"reference": copy.deepcopy(policy), "policy": policy})
    with pytest.raises(ctrl.ConfigError, match="ModuleDict holds 2 expanded models"):
        use(both)
    shared = torch.nn.ModuleDict({"model": policy, "same": torch.nn.Sequential(policy)})
    assert ctrl.describe(shared) == ctrl.describe(policy)


@pytest.mark.parametrize("verb", [ctrl.save, ctrl.export_published, lambda model, _: ctrl.merge_back(model)])
def test_weights_that_a_wrapper_trains_are_said_to_be_left_out(verb: Any, tmp_path: Path) -> None:
    """A head of one's own around the model is in none of its folders."""

    class Scored(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.head = model, nn.Linear(32, 1)

    scored = Scored(disturbed())
    with pytest.warns(ctrl.errors.ControlWarning, match=r"^2 tensors of Scored that train .*\(first: head.weight\)"):
        verb(scored, tmp_path / "trained")
    scored.head.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verb(nn.Sequential(disturbed()), tmp_path / "other")
        verb(scored, tmp_path / "frozen")
