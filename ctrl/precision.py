"""Keep the weights of a copy in fp32 and compute with them in the half type of the hidden state.

AdamW cannot move half-precision weights at usual rates: its steps are smaller than the distance to the next number.
While the copy runs, its modules read their fp32 weights rounded to the type of the hidden state, so every operation is
that of a half-precision copy, and the start equals the base to the last bit. Autocast would not do: it keeps the result
of a norm with fp32 weights in fp32. The rounding is a read, not a write: two threads may run one copy.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from ctrl.classes import made_once

HALF = (torch.bfloat16, torch.float16)


class _OfThread(threading.local):
    """Each thread sees its own value. It is there from the start: torch.compile takes a new one for another program."""

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None  # in which a copy computes that runs now
        self.original: torch.dtype | None = None  # of the weights of its layer


_thread = _OfThread()


class HalfComputing(nn.Module):
    """Mixin in front of a copy's class: its modules compute in the hidden state's type if that is a half type.

    Some layers of a half type (Mamba's) pass on a hidden state in fp32: then in the type of the layer's own weights.
    """

    def next_to(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the copy next to its layer."""
        before = _thread.original
        _thread.original = _first_dtype(layer)
        try:
            return self(*args, **kwargs)
        finally:
            _thread.original = before

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        before = _thread.dtype
        dtypes = (hidden_states.dtype, _thread.original)
        _thread.dtype = next((dtype for dtype in dtypes if dtype in HALF), None)
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            _thread.dtype = before


def _first_dtype(layer: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first parameter. Replicas of DataParallel hold plain tensors in their place."""
    for module in layer.modules():
        for name in (*module._parameters, *vars(module).get("_former_parameters", ())):
            if isinstance(found := getattr(module, name), Tensor):
                return found.dtype
    return None


def keep_in_fp32(copied: nn.Module) -> nn.Module:
    """Convert the half-precision parameters of a copy to fp32; the copy computes in half precision as before."""
    half = {id(p) for p in copied.parameters() if p.dtype in HALF}
    for module in copied.modules():
        names = [name for name, p in module._parameters.items() if id(p) in half]
        if names:
            module.__class__ = _rounding_class(type(module), tuple(names))
    for parameter in copied.parameters():
        if id(parameter) in half:
            parameter.data = parameter.data.float()
    if half:
        copied.__class__ = _computing_class(type(copied))
    return copied


def widen_adapters(copied: nn.Module) -> None:
    """Convert the trainable parameters of a low-rank copy, narrow as its base, to fp32. PEFT rounds what they add."""
    for parameter in copied.parameters():
        if parameter.requires_grad and parameter.element_size() < 4:
            parameter.data = parameter.data.float()


@made_once
def _computing_class(cls: type[nn.Module]) -> type[nn.Module]:
    return type(cls.__name__, (HalfComputing, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


@made_once
def _rounding_class(cls: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Make a subclass of cls whose parameters of these names read as rounded while a half-precision copy runs."""
    members: dict[str, Any] = {name: property(*_access(name)) for name in names}
    members |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    members["plain_copy_of"] = getattr(cls, "plain_copy_of", cls)
    return type(cls.__name__, (cls,), members)


def _access(name: str) -> tuple[Any, Any]:
    """Make the getter and the setter of a parameter."""

    def get(module: nn.Module) -> Any:
        value = module._parameters.get(name, vars(module).get(name))  # replicas of DataParallel hold plain tensors
        return value if value is None or _thread.dtype is None else value.to(_thread.dtype)

    def put(module: nn.Module, value: Any) -> None:
        vars(module)[name] = value

    return get, put
