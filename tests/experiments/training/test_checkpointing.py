"""Checkpointed layers keep less and give the same gradients; nothing is kept below the first layer that trains."""

from __future__ import annotations

import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.methods import MethodContext
from experiments.training.checkpointing import checkpoint_layers, why_not
from tests.helpers.engine import arm_config, train
from tests.helpers.tiny_llama import sequences, tiny

ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "partial": {"method": "partial"},
    "control": {"method": "control"},
    "last": {"method": "control", "control": {"layers": [3]}},
    "stack": {"method": "stack"},
    "lora": {"method": "lora"},
}


def batch() -> dict[str, Tensor]:
    return {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}


def kept(arm: str, how: Any) -> tuple[int, dict[str, Tensor], list[int]]:
    """Return the bytes that autograd keeps, the gradients, and the layers that ran again in the backward pass."""
    settings = {"options": {}} | ARMS[arm]
    model = arm_config(settings.pop("method"), **settings).build().prepare(tiny(), MethodContext()).train()
    checkpoint_layers(model, how)
    saved: list[weakref.ref[Tensor]] = []
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        saved.append(weakref.ref(tensor))  # gone, if the checkpoint of a frozen layer is
        return tensor

    ran: list[int] = []
    base = model.get_base_model() if arm == "lora" else model
    for index, layer in enumerate(base.model.layers):
        layer.input_layernorm.register_forward_hook(lambda *args, index=index: ran.append(index))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch(), use_cache=False).loss
    alive = [tensor.untyped_storage() for made in saved if (tensor := made()) is not None]
    forward, storages = len(ran), {storage.data_ptr(): storage.nbytes() for storage in alive}
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sum(size for place, size in storages.items() if place not in own), grads, sorted(set(ran[forward:]))


@pytest.mark.parametrize("arm", ARMS)
def test_the_gradients_are_the_same_and_less_is_kept(arm: str) -> None:
    plain, expected, again = kept(arm, "none")
    assert again == []
    for how in ("frozen", "all"):
        size, found, ran = kept(arm, how)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], grad) for name, grad in expected.items())
        assert size <= plain
        if how == "all":
            assert size < 0.8 * plain if arm != "last" else size < plain
            # the first layer with a copy is the lowest that gets a gradient
            lowest = {"full": 0, "lora": 0, "last": 3}.get(arm, 1)
            assert ran == list(range(lowest, 4)), arm


def test_frozen_parts_alone_run_again(recwarn: pytest.WarningsRecorder) -> None:
    assert kept("partial", "frozen")[2] == [2]  # between the two that train
    assert kept("control", "frozen")[2] == [2, 3]  # layer 2 and the frozen half of 3; that of 1 has no gradient
    assert not [one for one in recwarn if "has no effect" in str(one.message)]
    for arm in ("full", "lora"):
        with pytest.warns(UserWarning, match="checkpointing frozen has no effect: weights train in every layer"):
            assert kept(arm, "frozen")[2] == []
    assert kept("control", "all")[0] < kept("control", "frozen")[0] < kept("control", "none")[0]


def test_an_arm_trains_the_same_with_it(tmp_path: Path) -> None:
    runs = [train(arm_config("control"), tmp_path / how, checkpointing=how) for how in ("none", "frozen", "all")]
    assert runs[0].logs == runs[1].logs == runs[2].logs


def test_each_arm_without_a_frozen_layer_is_named(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Python shows a warning of one text once: the second arm was passed over."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for method in ("full", "lora", "control"):
            checkpoint_layers(arm_config(method).build().prepare(tiny(), MethodContext()), "frozen", f"{method} 0.01")
        train(arm_config("full"), tmp_path, checkpointing="frozen")
    said = [str(one.message) for one in recwarn if "frozen has no effect" in str(one.message)]
    assert [line.partition("every layer of ")[2].partition(",")[0] for line in said] == ["full 0.01", "lora 0.01", "x"]


def test_a_model_without_it_is_named() -> None:
    assert why_not(tiny()) is None
    assert why_not(SimpleNamespace()) == (
        "SimpleNamespace does not support it in transformers: set training.checkpointing to none"
    )
