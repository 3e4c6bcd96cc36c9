"""An expanded layer: what it compares, and what it leaves to the base."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

import ctrl
from tests.helpers.families import perturb
from tests.helpers.kept import kept_at_once
from tests.helpers.tiny_llama import IDS, disturbed, expanded
from tests.helpers.trainers import whole_batch

Gradients = dict[str, torch.Tensor]


def test_plerp_compares_what_proj_projects() -> None:
    """a with b, and P a with b: at one offset their divergences differ, and plerp's is lerp's."""
    found = {}
    for name in ("lerp", "plerp", "proj"):
        model = disturbed(interpolation=name, layers=[0])  # one layer: both branches get the same input
        for layer in ctrl.layer.expanded_layers(model):
            if name != "lerp":
                torch.manual_seed(8)
                layer.interpolation.offset.data.normal_(0, 0.2)
            layer.expanded.load_state_dict(ctrl.layer.expanded_layers(disturbed(layers=[0]))[0].expanded.state_dict())
        out = model(IDS, labels=IDS)
        out.divergence.backward()
        found[name] = out.divergence.item()
        if name == "plerp":
            assert layer.interpolation.offset.grad is None  # the loss of the mix alone trains its P
    assert found["plerp"] == pytest.approx(found["lerp"], rel=1e-6)
    assert found["proj"] != pytest.approx(found["lerp"], rel=1e-3)


def llama(checkpointed: bool, **settings: Any) -> Any:
    model = expanded(checkpoint_pretrained=checkpointed, **settings)
    model.config.use_cache = False
    return model


def with_dropout(checkpointed: bool, **settings: Any) -> Any:
    torch.manual_seed(0)
    base = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=4, n_head=4, n_positions=32))
    base.config.use_cache = False
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2, checkpoint_pretrained=checkpointed, **settings))
    perturb(model)
    return model


def gradients(model: Any) -> Gradients:
    model.base_model.get_input_embeddings().weight.requires_grad_(True)  # so that each F has a backward pass
    torch.manual_seed(1)
    model.train()(**whole_batch()).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(found: Gradients, expected: Gradients) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (llama, {}),
        (llama, {"structure": "hybrid", "interpolation": "slerp"}),
        (llama, {"structure": "stack"}),
        (llama, {"divergence": "attention"}),
        (llama, {"expanded": "lora", "detach_pretrained": True}),
        (llama, {"interpolation": "dlerp", "divergence": "cosine", "dtype": torch.bfloat16}),
        (with_dropout, {}),
    ],
)
def test_a_frozen_layer_that_runs_again_gives_the_same_gradients(
    make: Callable[..., Any], settings: dict[str, Any]
) -> None:
    expected = gradients(make(False, **settings))
    assert same(gradients(make(True, **settings)), expected)
    around = make(True, **settings)
    around.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert same(gradients(around), expected)
    cached = [make(again, **settings) for again in (False, True)]
    for model in cached:
        model.config.use_cache = True  # running again would fill the cache twice
    assert same(*map(gradients, cached))


def test_a_frozen_layer_that_runs_again_keeps_nothing_but_its_input() -> None:
    """Of the upper one: 30 bytes per token and unit over a base in bf16. The lower one has no backward pass."""
    units = whole_batch()["input_ids"].numel() * 32
    kept, least = (kept_at_once(llama(again, dtype=torch.bfloat16)) for again in (False, True))
    assert kept - least > 30 * units
    assert kept_at_once(llama(True, dtype=torch.bfloat16).eval()) > least


@pytest.mark.slow
def test_a_frozen_layer_that_runs_again_compiles() -> None:
    expected = gradients(llama(False))
    torch.compiler.reset()
    model = llama(True)
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    assert same(gradients(model), expected)


@pytest.mark.parametrize(("cached", "said"), [(True, 1), (False, 0)])
def test_activations_that_a_cache_keeps_are_said_once(cached: bool, said: int) -> None:
    model = disturbed(checkpoint_pretrained=True).train()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            model(input_ids=IDS, labels=IDS, use_cache=cached).loss.backward()
    assert sum("checkpoint_pretrained has no effect" in str(one.message) for one in seen) == said
