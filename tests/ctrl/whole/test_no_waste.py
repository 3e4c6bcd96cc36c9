"""A divergence that nobody adds to a loss costs nothing: no operation, no tensor kept for the backward pass."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ctrl
from ctrl.divergence import DIVERGENCES
from ctrl.interpolation import INTERPOLATIONS
from tests.helpers.kept import kept_at_once
from tests.helpers.tiny_llama import BATCHES, IDS, expanded, tiny
from tests.helpers.trainers import whole_batch

REAL = [name for name in DIVERGENCES if name != "none"]


class Counted(TorchDispatchMode):
    """Counts operations by name, and the bytes that autograd keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.kept = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.kept += tensor.nbytes
        return tensor


@functools.cache
def work(run: Callable[[Any], Any], dtype: torch.dtype = torch.float32, **values: Any) -> tuple[Counter[str], int]:
    """Operations and kept bytes of a run of a model with this config; measured once."""
    base = tiny().to(dtype)  # type: ignore[arg-type]
    base.set_attn_implementation("eager")  # for the attention divergence
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2, **values)).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*leaves out divergence")
        with Counted() as counted, torch.autograd.graph.saved_tensors_hooks(counted.keep, lambda tensor: tensor):
            run(model)
    return counted.ops, counted.kept


def trained(model: Any) -> None:
    model(**whole_batch()).loss.backward()


def without_labels(model: Any) -> None:
    model(**BATCHES[0]).logits.sum().backward()


def decoder_alone(model: Any) -> None:
    model.base_model(**BATCHES[0]).last_hidden_state.sum().backward()


def evaluated(model: Any) -> None:
    with torch.no_grad():
        model.eval()(**BATCHES[0])


def not_trained(model: Any) -> None:
    with torch.no_grad():
        model(**BATCHES[0])


def as_the_base(model: Any) -> None:
    with ctrl.pretrained(model):
        model(**whole_batch()).loss  # noqa: B018


@pytest.mark.parametrize("divergence", REAL)
@pytest.mark.parametrize("run", [trained, without_labels, decoder_alone, evaluated, not_trained, as_the_base])
def test_what_is_not_in_the_loss_is_not_computed(run: Callable[[Any], Any], divergence: str) -> None:
    weight = 0.0 if run is trained else 1.0
    settings = {"divergence": divergence, "divergence_weight": weight, "scale_by_alpha": True}
    (ops, kept), (least, kept_least) = work(run, **settings), work(run, divergence="none")
    assert not ops - least
    assert kept <= kept_least
    measured, kept_measured = work(trained, **{**settings, "divergence_weight": 1.0})
    assert measured - work(trained, divergence="none")[0]  # it would be seen
    assert kept_measured > work(trained, divergence="none")[1]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_half_types_are_not_cast_to_ask_for_their_dtype(interpolation: str) -> None:
    """Per expanded layer a and b become wide, and the mix narrow again; gates that read the layer's input widen it."""

    def casts(layers: int) -> int:
        base = tiny().eval().bfloat16()
        model = ctrl.expand(
            base, ctrl.ControlConfig(layers=layers, interpolation=interpolation, divergence="none", copies_dtype="base")
        )
        with Counted() as counted, torch.no_grad(), ctrl.pretrained(model):
            model(IDS)
        plain = counted.ops["aten._to_copy.default"]
        with Counted() as counted, torch.no_grad():
            model(IDS)
        return counted.ops["aten._to_copy.default"] - plain

    branch = casts_of_one_layer()
    more = {"lerp": 0, "slerp": 0, "proj": 0, "dlerp": 0, "dlerpin": 1, "plerp": 0, "moe": 2, "moe_soft": 1}
    if interpolation in more:
        assert casts(2) == 2 * (branch + 3 + more[interpolation])
    else:  # a new one may read both branches once more
        assert casts(2) <= 2 * (branch + 3 + 2)


class StateCasts(TorchDispatchMode):
    """Counts the casts of tensors as wide as the hidden state."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func) == "aten._to_copy.default" and args[0].shape[-1:] == (32,)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("interpolation", "divergence"),
    [*((name, "mse") for name in INTERPOLATIONS), ("dlerp", "cosine"), ("slerp", "norm")],
)
def test_states_that_are_wide_already_are_not_copied(interpolation: str, divergence: str) -> None:
    """Over a base in fp32 neither the mix nor the divergence casts a state, forward or backward; over bf16 they do."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = expanded(dtype=dtype, interpolation=interpolation, divergence=divergence).train()
        with StateCasts() as casts:
            trained(model)
        found.append(casts.count)
    assert found[0] == 0 < found[1]


def casts_of_one_layer() -> int:
    """What the layer itself casts: its norms compute in fp32."""
    model = tiny().eval().bfloat16()
    states = torch.randn(1, 4, 32).bfloat16()
    positions = model.model.rotary_emb(states, torch.arange(4)[None])
    with Counted() as counted, torch.no_grad():
        model.model.layers[0](states, position_embeddings=positions)
    return counted.ops["aten._to_copy.default"]


def bf16(**settings: Any) -> Any:
    model = expanded(dtype=torch.bfloat16, **settings)
    model.model.embed_tokens.weight.requires_grad_(True)  # so that each F has a backward pass, not only the upper one
    return model


@pytest.mark.parametrize(
    ("interpolation", "divergence", "most"),
    [
        ("lerp", "none", 0),
        ("lerp", "mse", 4),  # b - a
        ("lerp", "cosine", 12),
        ("lerp", "norm", 12),
        ("dlerp", "none", 8),  # a and b, wide
        ("dlerp", "mse", 12),
        ("dlerp", "cosine", 12),
        ("slerp", "norm", 24),
    ],
)
def test_mix_and_divergence_share_what_they_keep(interpolation: str, divergence: str, most: int) -> None:
    """Bytes for the backward pass per token and unit of the hidden state, over a base in bf16."""
    layers = 2
    units = layers * whole_batch()["input_ids"].numel() * 32
    settings = {"interpolation": interpolation, "divergence": divergence, "copies_dtype": "base"}
    more = kept_at_once(bf16(**settings)) - kept_at_once(bf16(divergence="none", copies_dtype="base"))
    assert most * units <= more < (most + 3) * units  # and some numbers per token, which has 32 units


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_log_measures_a_divergence_that_is_not_in_the_loss(weight: float) -> None:
    """Without gradients: nothing more is kept for the backward pass."""
    model = ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, divergence_weight=weight)).train()
    with torch.no_grad():
        for layer in ctrl.layer.expanded_layers(model):
            layer.expanded.mlp.up_proj.weight.mul_(3)
    assert (model(**whole_batch()).divergence is None) == (weight == 0)
    with ctrl.diagnostics(model) as log:
        out = model(**whole_batch())
        model(input_ids=IDS)  # a training pass without labels
        model.eval()(input_ids=IDS)
    assert out.divergence.requires_grad == (weight > 0)
    assert torch.equal(out.loss, out.lm_loss + weight * out.divergence)
    mean = sum(row.divergence for row in log.rows[:2]) / 2
    assert out.divergence.item() == pytest.approx(mean, rel=1e-5)
    assert mean > 0
    assert all(row.divergence > 0 for row in log.rows[2:4])
    assert all(row.divergence != row.divergence for row in log.rows[4:])  # NaN outside of training
