"""No training loses its divergence without a word, and what collect_divergence adds is what is missing."""

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
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

import ctrl
from tests.helpers.families import perturb
from tests.helpers.tiny_llama import IDS, expanded, tiny
from tests.helpers.trainers import (
    TRAINERS,
    accelerated,
    fuse_head,
    fused_loss,
    head_loss,
    hf_trainer,
    logits_loss,
    own_loop,
    own_loss,
    weights,
    whole_batch,
)

LOST = "leaves out divergence='mse'.* call ctrl.attach"
LOSSES: dict[str, Callable[[Any, Any], torch.Tensor]] = {"head": head_loss, "fused": fused_loss, "logits": logits_loss}
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


def fused() -> Any:
    model = expanded()
    fuse_head(model)
    return model


def lost(seen: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in seen if "leaves out divergence" in str(w.message)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("loss", LOSING)
def test_a_loop_that_loses_the_divergence_is_told_once(loss: str, training: bool) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        own_loop(fused().train(training), LOSING[loss])
    (message,) = lost(seen)
    assert "call ctrl.attach(trainer) before trainer.train()" in message
    assert "ctrl.collect_divergence" in message


@pytest.mark.slow
def test_a_compiled_loop_that_loses_the_divergence_is_told() -> None:
    compiled = torch.compile(expanded().train(), fullgraph=True, backend="eager")
    with pytest.warns(UserWarning, match="without labels " + LOST):
        compiled(input_ids=IDS)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("moved", [lambda model: model, copy.deepcopy, lambda model: model.to("cpu")])
def test_a_compiled_loop_that_takes_the_logits_is_told_once(moved: Callable[[Any], Any], training: bool) -> None:
    """The model has the labels, and its loss with the divergence is not used."""
    compiled = torch.compile(moved(expanded(layers=1, depth=2)).train(training), fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            compiled(input_ids=IDS, labels=IDS).logits.square().mean().backward()
    (message,) = lost(seen)
    assert "a training pass with a loss from the logits or the hidden states leaves out" in message


@pytest.mark.slow
def test_a_compiled_loop_with_the_model_s_loss_is_told_nothing_and_trains_alike() -> None:
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
def test_a_trainer_that_loses_the_divergence_is_told_once(trainer: str, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("loss", LOSSES)
def test_collected_in_a_loop_it_trains_as_the_model_s_own_loss(loss: str) -> None:
    def whole(model: Any, batch: Any) -> torch.Tensor:
        with ctrl.collect_divergence(model) as collected:
            value = LOSSES[loss](model, batch)
        return value + collected.weighted()

    model, own = fused().train(), expanded().train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*leaves out divergence")
        found = own_loop(model, whole)
    assert found == pytest.approx(own_loop(own, own_loss), rel=1e-6)
    assert found != pytest.approx(own_loop(fused().train(), LOSSES[loss]), rel=1e-3)
    expected = weights(own)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-7)


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


def test_inside_the_block_the_model_s_loss_is_the_lm_loss() -> None:
    model = expanded()
    out = model(**whole_batch())
    with ctrl.collect_divergence(model) as collected:
        inner = model(**whole_batch())
    assert torch.equal(inner.loss, out.lm_loss)
    assert torch.equal(collected.divergence(), out.divergence)
    assert torch.equal(inner.loss + collected.weighted(), out.loss)
    assert torch.equal(model(**whole_batch()).loss, out.loss)  # and after it as before


def test_several_passes_are_averaged_over_all_their_tokens() -> None:
    model, batch = expanded(), whole_batch()
    labelled = (batch["labels"][:, 1:] != -100).sum()
    for total in (None, labelled):
        with ctrl.collect_divergence(model) as whole:
            head_loss(model, batch)
        with ctrl.collect_divergence(model) as parts:
            for rows in (slice(3), slice(3, 8)):
                head_loss(model, {name: value[rows] for name, value in batch.items()})
        labels = [batch["labels"], batch["labels"][:3]]
        if total is not None:
            whole.passes[0].labels = labels[0]
            for one, rows in zip(parts.passes, (slice(3), slice(3, 8)), strict=True):
                one.labels = batch["labels"][rows]
        torch.testing.assert_close(parts.divergence(total=total), whole.divergence(total=total))


def test_reference_passes_do_not_count() -> None:
    """Without gradients, or by the base model: as DPO and GRPO compute their reference."""
    model, batch = expanded(), whole_batch()
    with ctrl.collect_divergence(model) as collected:
        head_loss(model, batch)
        with torch.no_grad():
            model(input_ids=IDS)
            head_loss(model, {**batch, "input_ids": batch["input_ids"].flip(0)})
        with ctrl.pretrained(model):
            model(input_ids=IDS)
    assert torch.equal(collected.divergence(), model(**batch).divergence)
    with torch.no_grad(), ctrl.collect_divergence(model) as evaluated:
        head_loss(model, batch)
    assert torch.equal(evaluated.divergence(), model(**batch).divergence)
    with ctrl.collect_divergence(model) as empty:
        pass
    assert empty.weighted() == 0


def test_nothing_is_left_behind() -> None:
    model = expanded()
    broken = model.model.norm.register_forward_hook(lambda *_: 1 / 0)
    with ctrl.collect_divergence(model), pytest.raises(ZeroDivisionError, match="division"):
        head_loss(model, whole_batch())
    broken.remove()
    assert model.control.current is None
    assert model.control.thread.collected is None
    assert not model.model._forward_hooks
    assert not model.model._forward_pre_hooks
    copy.deepcopy(model)


def test_labels_that_nobody_has_are_missed_with_a_reason() -> None:
    model = expanded(divergence_tokens="labels")
    with ctrl.collect_divergence(model) as collected:
        head_loss(model, whole_batch())
    with pytest.raises(ctrl.ConfigError, match="divergence_tokens='labels' needs labels"):
        collected.divergence()
    assert torch.equal(collected.divergence(whole_batch()["labels"]), model(**whole_batch()).divergence)


def test_reentrant_checkpointing_is_refused_while_collecting() -> None:
    model = expanded().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with ctrl.collect_divergence(model) as collected:
        head_loss(model, whole_batch())
    with pytest.raises(RuntimeError, match="use_reentrant"):
        collected.weighted()


@pytest.mark.parametrize("loss", ["own", "head"])
def test_a_checkpoint_around_the_layer_gives_the_same_gradients(loss: str) -> None:
    """torch's CheckpointWrapper (accelerate's FSDP uses it) calls the layer again without the pass."""
    compute = own_loss if loss == "own" else head_loss
    plain, wrapped = expanded().train(), expanded().train()
    wrapped.config.use_cache = False  # the second call would write to the cache again
    layers = wrapped.model.layers
    for index, layer in enumerate(layers):
        layers[index] = CheckpointWrapper(layer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*leaves out divergence")
        for model in (plain, wrapped):
            compute(model, whole_batch()).backward()
    pairs = list(zip(plain.parameters(), wrapped.parameters(), strict=True))
    assert any(p.grad is not None for p, _ in pairs)
    for p, q in pairs:
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad)


def test_passes_in_the_threads_of_data_parallel_are_not_missed() -> None:
    wrapped = torch.nn.DataParallel(expanded())
    with (
        pytest.raises(ctrl.ConfigError, match=r"or use the model's own loss"),
        ctrl.collect_divergence(wrapped),
    ):
        pass


def test_a_copy_made_inside_the_block_is_no_part_of_it() -> None:
    """It has the hooks of the block too, and once ran as a pass of the original."""
    model = expanded()
    with ctrl.collect_divergence(model) as collected:
        copied = copy.deepcopy(model)
        model(IDS)
        alone = collected.divergence()
        copied.model(IDS)
        assert torch.equal(collected.divergence(), alone)
    with ctrl.collect_divergence(model) as collected:
        copied.model(IDS)
    assert collected.divergence() == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "decoder", "layers"])
@pytest.mark.parametrize("before", [False, True])
def test_a_compiled_part_gives_its_divergence_or_says_why_not(part: str, before: bool) -> None:
    """Trainers compile the model and run its decoder alone. What was compiled before the block has no hooks."""
    torch.compiler.reset()
    model, other = expanded(layers=1, depth=2).train(), expanded(layers=1, depth=2).train()
    run = torch.compile(model, backend="eager") if part == "model" else model.base_model
    for module in {"decoder": [model.base_model], "layers": model.base_model.layers}.get(part, []):
        module.compile(backend="eager")
    if before:
        run(input_ids=IDS)
        with ctrl.collect_divergence(model) as found:
            run(input_ids=IDS)
        if part != "layers" and not found.passes:
            with pytest.warns(UserWarning, match=r"no pass .* before the block, .* call torch.compiler.reset\(\) once"):
                assert found.weighted() == 0
        torch.compiler.reset()
    with ctrl.collect_divergence(other) as wanted:
        other.base_model(input_ids=IDS)
    for _ in range(2):
        with ctrl.collect_divergence(model) as found:
            run(input_ids=IDS)
        torch.testing.assert_close(found.weighted(), wanted.weighted())
        found.weighted().backward()
    assert wanted.weighted() > 0


def test_a_block_that_sees_no_pass_is_said() -> None:
    model = expanded().train()
    with ctrl.collect_divergence(model) as collected, ctrl.pretrained(model):
        model(input_ids=IDS)
    with pytest.warns(UserWarning, match="has seen no pass of the model with gradients, so the divergence is 0 here"):
        assert collected.weighted() == 0
