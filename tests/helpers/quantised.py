"""Quantised bases: a fake kind that needs no library, and those of bitsandbytes, torchao and quanto if installed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from tests.helpers.families import build


class FakeInt8(nn.Linear):
    """A matrix of int8 with a scale per row. As in bitsandbytes, the first run takes the scales from the weight."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        scales = plain.weight.detach().abs().amax(-1, keepdim=True) / 127
        self.weight = nn.Parameter((plain.weight.detach() / scales).round().to(torch.int8), requires_grad=False)
        self.weight.scales = scales
        self.state = SimpleNamespace(scales=None)
        if plain.bias is not None:
            self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.state.scales is None:
            self.state.scales, self.weight.scales = self.weight.scales, None
        return linear(
            x, (self.weight * self.state.scales).to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        )


class FakeRepacked(FakeInt8):
    """A matrix that is laid out anew when it runs in eval mode; no gradient passes it then, as in bitsandbytes on CPUs.

    The layout belongs to the weight, which low-rank copies share.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not x.requires_grad:
            self.weight.repacked = True
        out = super().forward(x)
        return out.detach() if hasattr(self.weight, "repacked") else out


class FakeByMode(FakeInt8):
    """A matrix that rounds hidden states in eval mode alone, as int8 of bitsandbytes does on CPUs."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain)
        self.state.is_training = False

    def forward(self, x: Tensor) -> Tensor:
        self.state.is_training = self.training
        return super().forward(x if self.training else (8 * x).round() / 8)


class FakePacked(nn.Module):
    """A matrix without a weight, as GPTQ and AWQ have: integers in buffers."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, None
        scales = plain.weight.detach().abs().max() / 127
        self.register_buffer("qweight", (plain.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, (self.qweight * self.scales).to(x.dtype))


class FakeFloat8(nn.Linear):
    """A matrix of floats of one byte with one scale, as in DeepSeek's checkpoints."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.register_buffer("weight_scale_inv", plain.weight.detach().abs().max() / 448)
        scaled = plain.weight.detach() / self.weight_scale_inv
        self.weight = nn.Parameter(scaled.to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype) * self.weight_scale_inv.to(x.dtype))


def _replaced(make: Callable[[nn.Linear], nn.Module]) -> PreTrainedModel:
    model = build("llama")
    replace_linears(model.model, make)
    return model


def replace_linears(root: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace every nn.Linear below a module."""
    for name, module in list(root.named_modules()):
        if type(module) is nn.Linear:
            parent, _, key = name.rpartition(".")
            setattr(root.get_submodule(parent), key, make(module))


def _nf4() -> PreTrainedModel:
    bnb = pytest.importorskip("bitsandbytes")

    def make(plain: nn.Linear) -> nn.Module:
        new = bnb.nn.Linear4bit(plain.in_features, plain.out_features, bias=False, quant_type="nf4")
        new.weight = bnb.nn.Params4bit(plain.weight.data.clone(), requires_grad=False, quant_type="nf4")
        new.support_avx512bf16_for_cpu = False  # its layout for eval mode needs rows of 64, and expand refuses it
        return new.to("cpu")

    return _replaced(make)


def _llm_int8() -> PreTrainedModel:
    bnb = pytest.importorskip("bitsandbytes")

    def make(plain: nn.Linear) -> nn.Module:
        new = bnb.nn.Linear8bitLt(plain.in_features, plain.out_features, bias=False, has_fp16_weights=False)
        new.weight = bnb.nn.Int8Params(plain.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        return new.to("cpu")

    return _replaced(make)


def _torchao() -> PreTrainedModel:
    quantization = pytest.importorskip("torchao.quantization")
    model = build("llama")
    quantization.quantize_(model.model, quantization.Int8WeightOnlyConfig())
    return model


def _quanto(weights: str) -> PreTrainedModel:
    quanto = pytest.importorskip("optimum.quanto")
    model = build("llama")
    quanto.quantize(model.model, weights=getattr(quanto, weights))
    quanto.freeze(model.model)
    return model


QUANTISED: dict[str, Callable[[], PreTrainedModel]] = {
    "fake int8": lambda: _replaced(FakeInt8),
    "fake packed": lambda: _replaced(FakePacked),
    "fake float8": lambda: _replaced(FakeFloat8),
    "bitsandbytes int8": _llm_int8,
    "bitsandbytes nf4": _nf4,
    "torchao int8": _torchao,
    "quanto int8": lambda: _quanto("qint8"),
    "quanto int4": lambda: _quanto("qint4"),
}
