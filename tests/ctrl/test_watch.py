"""A training that loses its divergence is warned of, once, and no other is."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ctrl
from tests.helpers.families import perturb
from tests.helpers.tiny_llama import IDS, expanded, tiny
from tests.helpers.trainers import (
    LOSSES,
    TRAINERS,
    accelerated,
    fused,
    head_loss,
    hf_trainer,
    own_loop,
    own_loss,
    whole_batch,
)

LOST = "leaves out divergence='mse'.* call ctrl.attach"
LOSING = {
    **LOSSES,
    "logits next to labels": lambda model, batch: model(**batch).logits.square().mean(),
    "hidden states": lambda model, batch: model(**batch, output_hidden_states=True).hidden_states[-1].square().mean(),
    "a tuple's logits": lambda model, batch: model(**batch, return_dict=False)[1].square().mean(),
}
NO_DIVERGENCE: list[dict[str, Any]] = [
    {"divergence": "none"},
    {"divergence_weight": 0.0},
    {"structure": "stack"},
    {"structure": "hybrid", "layers": 1},  # the first copy is stacked
]


def lost(seen: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in seen if "leaves out divergence" in str(w.message)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("loss", LOSING)
def test_a_loop_that_loses_the_divergence_is_warned_once(loss: str, training: bool) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        own_loop(fused().train(training), LOSING[loss])
    (message,) = lost(seen)
    assert "call ctrl.attach(trainer) before trainer.train()" in message
    assert "ctrl.collect_divergence" in message


@pytest.mark.slow
def test_a_compiled_loop_that_loses_the_divergence_is_warned() -> None:
    compiled = torch.compile(expanded().train(), fullgraph=True, backend="eager")
    with pytest.warns(UserWarning, match="without labels " + LOST):
        compiled(input_ids=IDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moved", "training"),
    [
        (lambda model: model, True),
        (lambda model: model, False),
        (copy.deepcopy, True),
        (lambda model: model.to("cpu"), True),
    ],
    ids=["train", "eval", "copied", "moved"],
)
def test_a_compiled_loop_that_takes_the_logits_is_warned_once(moved: Callable[[Any], Any], training: bool) -> None:
    """The model has the labels, and its loss with the divergence is not used."""
    compiled = torch.compile(moved(expanded(layers=1, depth=2)).train(training), fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            compiled(input_ids=IDS, labels=IDS).logits.square().mean().backward()
    (message,) = lost(seen)
    assert "a training pass with a loss from the logits or the hidden states leaves out" in message


@pytest.mark.slow
def test_a_compiled_loop_with_the_model_s_loss_is_not_warned_and_trains_alike() -> None:
    model, other = (expanded(layers=1, depth=2).train() for _ in range(2))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (0.5, 65536.0):  # of accumulated gradients, or of a scaler
            out, expected = compiled(input_ids=IDS, labels=IDS), other(input_ids=IDS, labels=IDS)
            assert out.loss == expected.loss
            (out.loss * scale).backward()
            (expected.loss * scale).backward()
    assert all(
        p.grad is None or torch.equal(p.grad, q.grad)
        for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_a_decoder_without_a_head_loses_no_divergence_without_a_word() -> None:
    """It has no loss of its own to carry it, as when one loads AutoModel."""
    model: Any = ctrl.expand(tiny().model, ctrl.ControlConfig(layers=2, divergence="mse"))
    perturb(model)
    with pytest.warns(UserWarning, match=LOST):
        model(IDS).last_hidden_state.square().mean().backward()
    with ctrl.collect_divergence(model) as collected:
        model(IDS)
    assert collected.weighted() > 0


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_that_loses_the_divergence_is_warned_once(trainer: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        TRAINERS[trainer](expanded(), tmp_path).train()
    assert len(lost(seen)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("values", [*NO_DIVERGENCE, {}])
def test_nothing_is_missed_where_nothing_is_lost(values: dict[str, Any], tmp_path: Path) -> None:
    """Without a divergence whatever runs is complete; with one, the model's own loss and passes without gradients."""
    config = ctrl.ControlConfig(**{"layers": 2, **values})
    model = ctrl.expand(tiny(), config).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*leaves out divergence")
        if values:
            head_loss(model, whole_batch()).backward()
        with torch.no_grad():
            head_loss(model, whole_batch())
        with ctrl.pretrained(model):
            head_loss(model, whole_batch())
        head_loss(model.eval(), whole_batch())
        own_loop(model, own_loss)
        own_loop(model.train(), own_loss)
        assert (model(**whole_batch()).divergence is None) == ("divergence_weight" in values)
        own_loop(model, own_loss, accelerated())
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        own_loop(model, own_loss)
        hf_trainer(model, tmp_path).train()


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("part", ["loss", "logits", "decoder"])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_collected_and_not_added_is_said(added: bool, part: str, training: bool) -> None:
    """Inside the block the model's loss is the LM loss: whoever collects for a log alone would train without it."""
    model, batch = expanded().train(training), whole_batch()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            with ctrl.collect_divergence(model) as collected:
                if part == "decoder":
                    hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"])
                    loss = model.lm_head(hidden.last_hidden_state).square().mean()
                else:
                    out = model(**batch)
                    loss = out.loss if part == "loss" else out.logits.square().mean()
            noted = collected.divergence()
            (loss + 5 * noted if added else loss).backward()
    assert sum("inside of ctrl.collect_divergence" in str(w.message) for w in seen) == (not added)


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("first", ["loss", "divergence"])
def test_a_divergence_with_a_backward_pass_of_its_own_is_not_lost(added: bool, block: bool, first: str) -> None:
    """The pass of the loss keeps the graph: what is lost is known at the next pass of the model."""
    model, batch = expanded().train(), whole_batch()
    copied = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            with ctrl.collect_divergence(model) if block else contextlib.nullcontext() as collected:
                out = model(**batch)
            divergence = collected.weighted() if block else 5 * out.divergence
            parts = [out.loss if block else out.lm_loss, divergence]
            for i, one in enumerate(parts if first == "loss" else parts[::-1]):
                if added or one is not divergence:
                    one.backward(retain_graph=i == 0 or not added)
            pickle.dumps(model)
            held = weakref.ref(divergence)
            del out, divergence, parts, one, collected
            assert held() is None, "the graph of a pass is free before the next one"
    assert len(lost(seen)) == (not added)
    if added:
        for _ in range(2):
            copied(**batch).loss.backward()
        for p, q in zip(model.parameters(), copied.parameters(), strict=True):
            assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_a_later_training_of_a_compiled_model_is_looked_at_too() -> None:
    """The gradient that shows a lost divergence was looked at in the first training alone."""
    model = expanded().train()
    for _ in range(2):
        model.to("cpu")
        with pytest.warns(UserWarning, match="leaves out divergence='mse'"):
            (0 * model.control.marked(torch.ones(()))).backward()
