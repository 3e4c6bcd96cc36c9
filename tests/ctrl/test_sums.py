"""Sums over all values of embeddings, head and buffers see what samples miss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ctrl
from ctrl.changes import changed
from ctrl.fingerprint import fingerprint, holds_more
from ctrl.sums import exact_sums, other_rows
from tests.helpers.architectures import build
from tests.helpers.families import perturb
from tests.helpers.tiny_llama import IDS, tiny

BIAS = "mlp.gate.e_score_correction_bias"  # of DeepSeek's routers: a buffer that a balancing of experts moves


def balanced(model: Any, seed: int, copies: bool = True) -> Any:
    """Move the routers' biases, of the copies or of the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(BIAS) and (".expanded." in name) == copies:
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model


def deepseek(seed: int = 1) -> Any:
    model = ctrl.expand(build("deepseek_v3"), ctrl.ControlConfig(layers=[-2, -1]))
    perturb(model)
    return balanced(model, seed).eval()


def test_sums_are_of_all_bytes() -> None:
    model: Any = tiny()
    sums = exact_sums(model)
    assert sorted(exact_sums(model, whole=False)) == ["lm_head.weight", "model.embed_tokens.weight"]
    assert sums.keys() == dict(model.named_parameters()).keys()
    dtype, total = sums["lm_head.weight"]
    whole = model.lm_head.weight.detach().view(torch.int64)
    assert (dtype, total) == ("torch.float32", int(whole.sum()))
    with torch.no_grad():
        model.lm_head.weight[7, 1] += 1e-3
    here = {"sums": exact_sums(model)}
    assert other_rows({"sums": sums}, here).startswith("lm_head.weight: values of this base")
    assert other_rows({}, here) == other_rows(here, here) == ""


def test_a_save_and_a_swap_read_the_base_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An 8B model in bf16 has 16 GB. A load reads it before and after it gets its copies."""
    model: Any = ctrl.expand(tiny().eval(), ctrl.ControlConfig(layers=2))
    read: list[int] = []
    monkeypatch.setattr("ctrl.sums.byte_sum", lambda tensor: read.append(tensor.data_ptr()) or 0)
    base = {p.data_ptr() for name, p in model.named_parameters() if ".expanded." not in name and "theta" not in name}

    def passes(run: Any) -> float:
        read.clear()
        run()
        return sum(one in base for one in read) / len(base)

    control: Any = model.control
    control.sums = {name: (dtype, 0) for name, (dtype, _) in control.sums.items()}
    assert passes(lambda: ctrl.save(model, tmp_path)) == 1
    other = ctrl.swap(model, tmp_path)
    assert passes(lambda: ctrl.swap(model, other)) == 1
    with ctrl.pretrained(model):
        pass
    assert passes(lambda: ctrl.pretrained(model).__enter__()) < 0.2  # embeddings and head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_value_of_any_frozen_matrix_is_saved_and_said(dtype: torch.dtype, tmp_path: Path) -> None:
    """As merged adapters move few values of a half type. No sample shows it."""
    model, part = (
        ctrl.expand(tiny().eval().to(dtype), ctrl.ControlConfig(layers=2)),
        "model.layers.0.mlp.up_proj.weight",
    )
    before = fingerprint(model)
    with torch.no_grad():
        model.get_parameter(part)[3, 1] += 1
    assert fingerprint(model) == before
    ctrl.save(model, tmp_path)
    again = ctrl.load(tiny().eval().to(dtype), tmp_path)
    assert torch.equal(again.get_parameter(part), model.get_parameter(part))
    with pytest.warns(UserWarning, match=f"1 frozen parameters have changed since .first: {part}"):
        ctrl.reference(model)


def test_another_value_of_any_matrix_of_the_base_is_said(tmp_path: Path) -> None:
    ctrl.save(ctrl.expand(tiny().eval(), ctrl.ControlConfig(layers=2)), tmp_path)
    base = tiny().eval()
    with torch.no_grad():
        for layer in base.model.layers:
            layer.mlp.up_proj.weight[3, 1] += 1
    with pytest.warns(UserWarning, match=r"layers\.2\.mlp\.up_proj\.weight and 1 more: values of this base"):
        ctrl.load(base, tmp_path)


def test_buffers_of_the_base_that_have_moved_are_saved_and_said(tmp_path: Path) -> None:
    model = deepseek()
    assert not changed(model)
    ctrl.save(model, tmp_path / "before")
    balanced(model, 2, copies=False)
    ctrl.save(model, tmp_path / "after")
    again = ctrl.load(build("deepseek_v3"), tmp_path / "after").eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    with pytest.warns(UserWarning, match=f"frozen parameters have changed since .first: .*{BIAS}"):
        ctrl.unload(model)
    with pytest.warns(UserWarning, match=f"{BIAS}: values of this base are not those"):
        ctrl.load(model, tmp_path / "before")


def test_buffers_of_copies_are_merged() -> None:
    model, other = deepseek(), deepseek(seed=3)
    with ctrl.at_alpha(model, 1.0):
        expected = model(IDS).logits
    assert torch.equal(ctrl.merge_back(model, alpha=1.0).eval()(IDS).logits, expected)
    torch.testing.assert_close(ctrl.merge_models([model, other], [1.0, 0.0], 1.0).eval()(IDS).logits, expected)
    plain = build("deepseek_v3")
    assert torch.equal(ctrl.merge_back(model, alpha=0.0).eval()(IDS).logits, plain(IDS).logits)


class Packed(torch.Tensor):
    """As torchao's weights: floats to the outside, whose values cannot be laid out anew."""

    def __new__(cls, values: torch.Tensor) -> Any:
        return torch.Tensor._make_subclass(cls, values)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("flatten", "view", "reshape", "__getitem__"):
            raise NotImplementedError(f"Packed: {func.__name__}")
        made = super().__torch_function__(func, types, args, kwargs or {})
        return made.as_subclass(torch.Tensor) if func is nn.functional.linear else made


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_head_that_is_quantised_after_the_expansion_is_left_out(low_rank: bool, tmp_path: Path) -> None:
    """The way out that errors of quantised layers name: expand first, then quantise the frozen matrices."""
    config = ctrl.ControlConfig(layers=2, expanded="lora" if low_rank else "full")
    model: Any = ctrl.expand(tiny().eval(), config)
    perturb(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".expanded." not in name:
            module.weight = nn.Parameter(Packed(module.weight.detach()), requires_grad=False)
    assert not isinstance(model.model.embed_tokens.weight, Packed)
    assert list(exact_sums(model)) == ["model.embed_tokens.weight"]
    assert holds_more(model, "torch.bfloat16")
    with ctrl.pretrained(model):
        own = model(IDS).logits
    ctrl.save(model, tmp_path)
    with pytest.warns(UserWarning, match="the base in training was quantised"):
        loaded = ctrl.load(tiny().eval(), tmp_path)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert torch.equal(ctrl.unload(model)(IDS).logits, own)
