"""Read tensors that accelerate has offloaded: its hooks keep them in host memory or on disk, the model has empty ones.

`cpu_offload`, `disk_offload` and a device_map with "cpu" or "disk" do this. Such a model runs, but does not train.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def is_offloaded(model: nn.Module) -> bool:
    """Return whether any tensor of the model is empty while a hook keeps its values."""
    hooks = any("_hf_hook" in vars(module) for module in model.modules())
    return hooks and any(tensor.is_meta for tensor in model.state_dict().values())


def held(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer; if it is offloaded, the values that a hook of this module keeps.

    They have the dtype that they had before: accelerate gives the empty one the dtype in which the module computes.
    """
    tensor: Tensor = getattr(module, name)
    return _kept(module, name, tensor) if tensor.is_meta else tensor


def in_memory(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the offloaded tensors of a state dict. A tensor with two names stays one tensor."""
    found: dict[int, Tensor] = {}
    for name, tensor in state.items():
        if id(tensor) not in found:
            found[id(tensor)] = _search(model, name, tensor) if tensor.is_meta else tensor
    return {name: found[id(tensor)] for name, tensor in state.items()}


def _search(model: nn.Module, name: str, empty: Tensor) -> Tensor:
    """Ask the hooks of the tensor's own module and of those around it, which may load their children at once."""
    parts = name.split(".")
    for cut in reversed(range(len(parts))):
        module, key = model.get_submodule(".".join(parts[:cut])), ".".join(parts[cut:])
        if (tensor := _kept(module, key, empty)) is not empty:
            return tensor
    return empty


def _kept(module: nn.Module, key: str, empty: Tensor) -> Tensor:
    hook: Any = vars(module).get("_hf_hook")
    for one in getattr(hook, "hooks", (hook,)):  # several are in a SequentialHook
        weights = getattr(one, "weights_map", None)
        if weights is not None and key in weights:
            tensor: Tensor = weights[key]
            return tensor
    return empty
