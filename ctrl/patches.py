"""Forwards that were set on an instance, by trainers or by hand: what they hide, and what runs in a copy."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from ctrl.errors import ConfigError, warn
from ctrl.layer import expanded_layers
from ctrl.offloaded import is_offloaded

FORWARDS = ("forward", "_original_forward", "_old_forward")  # that trainers set on an instance


def refuse_patches(model: nn.Module, layers: nn.ModuleList, indices: Sequence[int]) -> None:
    """Raise ConfigError for forwards of instances that hide those of the new classes, or that copies would run.

    accelerate sets one for the hooks of a device_map, Trainer for autocast, TRL for its fused head. indices: of the
    layers to copy.
    """
    for index in indices:
        if (kept := next(filter(forward_holds, layers[index].modules()), None)) is not None:
            raise ConfigError(
                f"layer {index}: a {type(kept).__name__} has a forward of its own (a patch, or torch.compile of its "
                "forward), which runs that module's weights: its copy would run them too, and never train. Expand the "
                "model first, then patch or compile"
            )
    for module in (model, *layers):
        own = vars(module).get("forward")
        if getattr(own, "__func__", None) is type(module).forward:
            del module.forward  # the class's own forward, left by a hook that was removed
    wrapped = [module for module in (model, *layers) if "forward" in vars(module)]
    if any("_hf_hook" in vars(module) for module in wrapped):
        if is_offloaded(model):
            raise ConfigError(
                f"the weights of {type(model).__name__} are offloaded, which leaves nothing to copy: load it without "
                "device_map, expand it or load the copies onto it, then offload it: "
                "accelerate.disk_offload(model, folder)"
            )
        raise ConfigError(
            f"{type(model).__name__} has hooks around its forward (a device_map over several devices): expand it "
            "before you dispatch it, or remove the hooks first: accelerate.hooks.remove_hook_from_submodules(model)"
        )
    if wrapped:
        raise ConfigError(
            f"a {type(wrapped[0]).__name__} has a forward of its own, which a trainer has set (for autocast or a fused "
            "head): expand the model before you pass it to a trainer, or delete that forward first: del model.forward"
        )


def forward_holds(module: nn.Module) -> bool:
    """Whether a forward set on the instance is a function that holds the module: copy.deepcopy does not copy it.

    A method that is bound to the module (Liger, hub kernels) is copied with it, but not what its function holds (TRL's
    fused head). A module of torch.compile makes its own anew.
    """
    if "forward" not in vars(module) or "_orig_mod" in module._modules:
        return False
    own, seen = {id(part) for part in module.modules()}, set()

    def holds(value: Any, copied: bool) -> bool:
        if (id(value), copied) in seen or isinstance(value, type):
            return False
        seen.add((id(value), copied))
        if isinstance(value, nn.Module):
            return not copied and id(value) in own
        if isinstance(value, types.MethodType):
            return holds(value.__self__, copied) or holds(value.__func__, False)
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            return any(holds(part, False) for part in (*cells, *(value.__defaults__ or ())))
        if isinstance(value, functools.partial):
            return any(holds(part, copied) for part in (value.func, *value.args, *value.keywords.values()))
        return callable(value) and any(holds(part, copied) for part in getattr(value, "__dict__", {}).values())

    return holds(vars(module)["forward"], True)


class CopiedAlone(nn.Module):
    """Mixin of an expanded model: a `copy.deepcopy` of it runs weights of its own, whatever was patched."""

    def __getstate__(self) -> Any:
        """Return what copy.deepcopy copies: a forward that runs this model (TRL's fused head) is not that of a copy."""
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k not in FORWARDS} if forward_holds(self) else state

    def __setstate__(self, state: Any) -> None:
        """Take what was copied or pickled. Passes of the decoder alone find the model by its `Control`."""
        super().__setstate__(state)
        if control := vars(self).get("control"):
            control.owner = weakref.ref(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy as torch does; leave out patches in which the copy would run weights, or copies, of this model."""
        kept = {id(tensor) for tensor in self.parameters() if memo.get(id(tensor)) is tensor}  # both models have them
        held = [
            name
            for name, part in self.named_modules()
            if part is not self and forward_holds(part)
            if expanded_layers(part) or not kept.issuperset(map(id, part.parameters()))
        ]
        copied: Any = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        for name in held:
            vars(copied.get_submodule(name)).pop("forward")
        if held:
            warn(
                f"{len(held)} modules have a forward of their own (a patch, or torch.compile of their forward; first: "
                f"{held[0]}), which runs the weights of this model: that of the copy is the class's own",
                stacklevel=3,
            )
        return copied
