"""What collect_divergence adds is what a loss misses."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

import ctrl
from tests.helpers.tiny_llama import IDS, expanded
from tests.helpers.trainers import (
    LOSSES,
    fused,
    head_loss,
    own_loop,
    own_loss,
    weights,
    whole_batch,
)


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
@pytest.mark.parametrize(("part", "before"), [("model", False), ("model", True), ("decoder", True), ("layers", True)])
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
