"""Choose the arithmetic of a run: fp32, or bf16 where the machine computes it fast; of its adapters; dtypes by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ctrl.quantised import is_quantised, is_quantised_linear
from ctrl.sharded import sharded

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of weights
BACKENDS: Any = torch.backends  # whose stub has no fp32_precision
EXACT = "ieee"
OVERRIDES = ("NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")  # libraries read them


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_of(model: nn.Module) -> dict[str, str]:
    """Return {"gpu": the names of the GPUs that hold the model}, since last digits depend on them; {} without one."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    names = sorted({torch.cuda.get_device_name(one) for one in devices})
    return {"gpu": ", ".join(names)} if names else {}


def products_of(model: nn.Module) -> str:
    """Return how products of fp32 are computed where a model is: `ieee`, or with the short mantissa of TF32 or bf16.

    torch.set_float32_matmul_precision and TORCH_ALLOW_TF32_CUBLAS_OVERRIDE decide it for the whole process, and
    OVERRIDES below torch.
    """
    on_gpu = any(p.device.type == "cuda" for p in model.parameters())
    how = (BACKENDS.cuda if on_gpu else BACKENDS.mkldnn).matmul.fp32_precision
    own = [f"{name}={os.environ[name]}" for name in OVERRIDES if os.environ.get(name)]
    return ", ".join([EXACT if how == "none" else str(how), *own])


def bf16_pays() -> tuple[bool, str]:
    """Whether bf16 arithmetic is faster than fp32 here, and the reason in a few words."""
    if torch.cuda.is_available():
        return (
            torch.cuda.is_bf16_supported(),
            "CUDA GPU with bf16" if torch.cuda.is_bf16_supported() else "GPU without bf16",
        )
    for probe, name in (
        (torch.cpu._is_amx_tile_supported, "AMX"),
        (torch.cpu._is_avx512_bf16_supported, "AVX-512 BF16"),
    ):
        if probe():
            return True, f"CPU with {name}"
    return False, "CPU without bf16 instructions"


class Precision:
    """How a run computes: `bf16` is autocast over fp32 weights, `fp32` is plain; `auto` takes what is faster here."""

    def __init__(self, name: str) -> None:
        pays, self.reason = bf16_pays()
        self.bf16 = pays if name == "auto" else name == "bf16"
        if name != "auto":
            self.reason = "as configured"

    @property
    def name(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=self.bf16):
            yield

    def hold_frozen(self, model: nn.Module) -> int:
        """Hold the weights of frozen linear layers in bf16 from now on. Returns how many parameters were cast.

        Autocast would cast them before each product anyway, so results are bit-identical (tested); norms and
        embeddings, which it does not cast, stay in fp32. Tied weights are left alone.
        """
        frozen = [p for p in self.linear_parameters(model) if not p.requires_grad]
        for parameter in frozen:
            parameter.data = parameter.data.to(torch.bfloat16)
        return sum(parameter.numel() for parameter in frozen)

    @contextmanager
    def held(self, model: nn.Module) -> Iterator[None]:
        """Inside the block all linear layers hold bf16 weights; afterwards the very same fp32 tensors.

        The casts of autocast are half of the time of a decoding step; results are the same, as for `hold_frozen`. A
        model in shards stays as it is: what a pass gathers is not what would be set here.
        """
        originals = [] if sharded(model) else [(p, p.data) for p in self.linear_parameters(model)]
        try:
            for parameter, data in originals:
                parameter.data = data.to(torch.bfloat16)
            yield
        finally:
            for parameter, data in originals:
                parameter.data = data

    def linear_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Those that autocast casts at each product: fp32, of linear layers, not tied to an embedding."""
        if not self.bf16:
            return []
        tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in tied]
        parameters = {id(p): p for module in linear for p in module.parameters(recurse=False)}
        return [p for p in parameters.values() if p.dtype == torch.float32 and not is_quantised(p)]


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a matrix that adapters can change."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def compute_as_base(model: nn.Module) -> None:
    """Let the layers of PEFT return the dtype of the base's layers under autocast, and not that of their input.

    An adapter that changes nothing then computes what the base does, bit for bit. DoRA's lengths of rows are computed
    in fp32, as at their start.
    """
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if type(module) is DoraLinearLayer:  # not of an embedding, whose input is ids
            module.register_forward_pre_hook(_wide_input)
        elif isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
            if is_linear(base) and not is_quantised_linear(base):  # quantised ones return the dtype of their input
                module.register_forward_hook(_narrow_output)


def _wide_input(module: nn.Module, args: tuple[Tensor]) -> Tensor:
    (x,) = args
    return x.float() if torch.is_autocast_enabled(x.device.type) else x


def _narrow_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    kind = output.device.type
    replaced = "forward" in vars(module)  # by `fp32_head`
    return output if replaced or not torch.is_autocast_enabled(kind) else output.to(torch.get_autocast_dtype(kind))
