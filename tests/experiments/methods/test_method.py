"""Whole methods: one contract for all short names and products through the real engine, and how their parts combine."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.methods import METHODS, ActiveMethod, Method, Tokens
from experiments.methods.active import ActiveTerm
from experiments.methods.adapters import Peft
from experiments.methods.base import Tuning
from experiments.methods.low_rank import Corda, Lora
from experiments.methods.saving import load_onto
from experiments.methods.tuning import Control, Full, Partial
from experiments.methods.weights import trainable
from experiments.models.head import only_label_logits
from tests.helpers.engine import LAYERS, OPTIONS, PRODUCTS, Killed, Outcome, arm_config, collate, context, train
from tests.helpers.tiny_llama import sequences, tiny

ALL = [*METHODS, *PRODUCTS]
PARTS = ("loss", "lm_loss", "weighted_lm_loss", "divergence", "penalty", "grad_norm")
LAYER_PARTS = tuple(f"model.layers.{i}." for i in LAYERS["layers"])
TRAINED: dict[type[Tuning], tuple[str, ...]] = {  # what the names of trained weights begin with
    Full: ("",),
    Partial: LAYER_PARTS,
    Control: tuple(part + name for part in LAYER_PARTS for name in ("expanded.", "interpolation.")),
    Lora: ("base_model.model.model.layers.",),
}


@functools.cache
def whole(name: str) -> Outcome:
    """The uninterrupted run, made once."""
    with tempfile.TemporaryDirectory() as folder:
        return train(arm_config(name), Path(folder))


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    whole.cache_clear()


def ids() -> Tensor:
    return collate(sequences())["input_ids"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.slow
def test_only_what_a_method_trains_changes(name: str) -> None:
    method = arm_config(name).build()
    start = method.prepare(tiny(), context())
    before = {n: p.detach().clone() for n, p in start.named_parameters()}
    after = dict(whole(name).model.named_parameters())
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == set(trainable(start))
    assert {n for n in changed if "lora_" in n} == (changed if isinstance(method.tuning, Lora) else set())
    assert ("base_model" in next(iter(changed))) == method.tuning.adapts
    for cls, prefixes in TRAINED.items():
        if isinstance(method.tuning, cls):
            assert all(n.startswith(prefixes) for n in changed)
            assert any("self_attn" in n for n in changed) == (name != "rslora")  # which has `targets: mlp` here


@pytest.mark.parametrize("name", ALL)
@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Killed after the checkpoint of step 2; the objects of the second run are fresh. Also: the same run twice."""
    with pytest.raises(Killed):
        train(arm_config(name), tmp_path, kill_at=4)
    again, first = train(arm_config(name), tmp_path), whole(name)
    assert list(again.logs) == [3, 4, 5, 6]
    assert all(again.logs[step] == first.logs[step] for step in again.logs)
    assert all(torch.equal(again.measured[step], first.measured[step]) for step in (4, 6))
    assert again.weights.keys() == first.weights.keys()
    assert all(torch.equal(again.weights[n], first.weights[n]) for n in first.weights)
    assert again.cost["tokens"] == first.cost["tokens"]


@pytest.mark.parametrize("name", [name for name in ALL if not arm_config(name).build().reads_pass])
@pytest.mark.slow
def test_two_micro_batches_are_one_large_batch(name: str, tmp_path: Path) -> None:
    options = {k: v for k, v in OPTIONS.get(name, {}).items() if k != "dropout"}
    arm = arm_config(name, options)
    large = whole(name) if options == OPTIONS.get(name, {}) else train(arm, tmp_path / "a", steps=3)
    small = train(arm, tmp_path / "b", steps=3, batch_size=2, gradient_accumulation=2)
    for step in (1, 2, 3):
        logs = large.logs[step]
        for part in PARTS:
            if part in logs:
                heavy = part == "penalty" and name == "kl with a budget"  # 50 times a KL of 2e-5 in fp32
                rounding = 5e-6 if heavy else 1e-6
                assert small.logs[step][part] == pytest.approx(logs[part], rel=1e-3, abs=rounding), (step, part)
    terms = arm.build().losses
    assert ("weighted_lm_loss" in large.logs[3]) == any(term.weighs_tokens for term in terms)
    if any(term.active_class().penalty is not ActiveTerm.penalty or term.penalises_tokens for term in terms):
        assert large.logs[3]["penalty"] > 1e-4


@pytest.mark.parametrize("name", ALL)
@pytest.mark.slow
def test_what_is_saved_loads_as_what_was_measured(name: str, tmp_path: Path) -> None:
    out = whole(name)
    model = out.model.eval()
    with out.method.evaluated(model), torch.no_grad():
        out.method.save(model, tmp_path)
        expected = model(ids()).logits
    with torch.no_grad():
        again = load_onto(tiny(), tmp_path).eval()(ids()).logits
        base = tiny().eval()(ids()).logits
    rounding = 1e-5 if isinstance(out.method.method.tuning, Corda) else 0.0  # saved as an adapter of the unchanged base
    torch.testing.assert_close(again, expected, rtol=0, atol=rounding)
    assert (expected - base).abs().max() > 1e-3
    names = {p.name for p in tmp_path.iterdir()}
    assert ("adapter_config.json" in names) == out.method.method.tuning.adapts


def penalty(method: ActiveMethod, model: Any, batch: dict[str, Any]) -> Tensor | None:
    return method.penalty(model, batch, model(**batch), None)


def test_penalties_add_up_and_token_weights_multiply() -> None:
    batch = only_label_logits(collate(sequences()))
    model: Any = tiny()
    terms = {name: arm_config(name).build().losses[0] for name in ("ewc", "l2sp", "kl", "dft")}
    method = Method(Full(), (*terms.values(), terms["dft"], terms["kl"]))
    active = method.begin(model, context())
    alone = [Method(Full(), (terms[name],)).begin(model, context()) for name in ("ewc", "l2sp")]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    parts = [penalty(one, model, batch) for one in alone]
    assert None not in parts
    torch.testing.assert_close(penalty(active, model, batch), sum(parts))  # type: ignore[arg-type]
    assert active.token_weights is not None
    assert active.token_penalties is not None
    noted, log_sum = active.begin_pass(model, batch), torch.full((2, 1), 96.0).log()
    tokens = Tokens(torch.tensor([0.5, 0.25]).log(), torch.zeros(2, 96), log_sum, noted=noted)
    torch.testing.assert_close(active.token_weights(tokens), torch.tensor([0.25, 0.0625]))
    one, two = active.token_penalties(tokens)
    assert one.value == two.value > 0
    assert (method.reads_logits, method.reads_weights, method.needs_replay) == (False, True, False)


def test_a_method_without_additions_adds_nothing() -> None:
    method, model = Method(Full()), tiny()
    active = method.begin(model, context())
    assert active.token_weights is None
    assert active.token_penalties is None
    assert penalty(active, model, only_label_logits(collate(sequences()))) is None
    assert active.state() == {}
    assert not any((method.reads_logits, method.reads_weights, method.needs_replay, method.writes_weights))
    before = [p.detach().clone() for p in model.parameters()]
    active.after_step(model, 1)
    with active.evaluated(model):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_a_method_may_begin_twice_and_holds_nothing_itself(name: str) -> None:
    """All that training notes is in what `begin` returns."""
    method = arm_config(name).build()
    before = copy.deepcopy(method)
    one, two = (method.begin(method.prepare(tiny(), context()), context()) for _ in range(2))
    assert method == before
    assert not any(part.__pydantic_private__ for part in (method.tuning, *method.additions))
    for part, again, config in zip((*one.terms, one.average), (*two.terms, two.average), method.additions, strict=True):
        assert (part is again) == (part is config) == (config.active is None)


def test_parts_that_exclude_each_other_are_refused_with_a_reason() -> None:
    (wise,) = (arm_config("wise").build().average,)
    for tuning in (Lora(), Corda(), Peft(type="oft")):
        with pytest.raises(ValueError, match=r"wise interpolates weights, .* use the posthoc operation 'wise'"):
            Method(tuning, (), wise)
