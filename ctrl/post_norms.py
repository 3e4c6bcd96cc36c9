"""Start a stacked copy as the identity by its norms, if these follow its output projections (Gemma 2, OLMo 2, GLM 4).

A norm returns vectors of full length however short those are that it gets. After projections that start at 0 it would
change the hidden states by this length in the first step of an optimizer, at any learning rate. So such a norm starts
at 0, and the projections before it as those of the layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ctrl.copies import output_projections
from ctrl.precision import HALF
from ctrl.quantised import plain_linears

SCALES = (0.0, -1.0)  # at which a norm returns 0: those of Gemma multiply by 1 + weight, which a half type would hold


@contextlib.contextmanager
def norms_of_zeros(copied: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """List the norms that get zeros alone when the copy runs inside the block, each with what it gets."""
    found: list[tuple[nn.Module, Tensor]] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and not args[0].any():
            found.append((module, args[0]))

    norms = [module for module in copied.modules() if "norm" in type(module).__name__.lower()]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def start_at_norms(
    copied: nn.Module, layer: nn.Module, norms: list[tuple[nn.Module, Tensor]], is_identity: Callable[[], bool]
) -> None:
    """Let these norms of a stacked copy start at 0, and the projections before them as those of its layer.

    is_identity: runs the copy. Projections without such a norm stay at 0. A norm without weights leaves all as it is.
    """
    before = {p: p.clone() for norm, _ in norms for p in norm.parameters(recurse=False)}
    if not all(_silenced(norm, zeros) for norm, zeros in norms):
        for parameter, value in before.items():
            parameter.copy_(value)
        return
    floats = plain_linears(layer)
    own = {f"{name}.{key}": p for name, m in layer.named_modules() for key, p in _plain(m, floats).named_parameters()}
    own = {name.removeprefix("."): p for name, p in own.items()}
    names = {p: name for name, p in copied.named_parameters()}
    for group in output_projections(copied):
        for parameter in group:
            parameter.copy_(own[names[parameter]])
        if not is_identity():
            for parameter in group:
                parameter.zero_()


@torch.no_grad()
def starting_norm(copied: nn.Module) -> str:
    """Name the first norm of a stacked copy that returns 0 still; empty if none does."""
    for name, module in copied.named_modules():
        weight = module._parameters.get("weight") if "norm" in type(module).__name__.lower() else None
        if weight is None or type(weight.data) is not Tensor or weight.is_meta:  # fake tensors have no values
            continue
        if not any(bool((weight == scale).all()) for scale in SCALES):
            continue
        values = torch.linspace(-1, 2, weight.numel(), dtype=weight.dtype, device=weight.device)[None, None]
        if not module(values).any():  # at 0 a norm of Gemma is one of length 1
            return name
    return ""


def _plain(module: nn.Module, floats: dict[int, nn.Module]) -> nn.Module:
    return floats.get(id(module), module)


def _silenced(norm: nn.Module, zeros: Tensor) -> bool:
    """Set the norm to return 0 for whatever it gets, and return whether that is so."""
    values = torch.linspace(-1, 2, zeros.numel(), dtype=zeros.dtype, device=zeros.device).view_as(zeros)
    half = any(parameter.dtype in HALF for parameter in norm.parameters(recurse=False))
    for scale in SCALES[: 1 if half else None]:
        for name, parameter in norm.named_parameters(recurse=False):
            parameter.fill_(scale if name == "weight" else 0.0)
        if not norm(values).any():
            return True
    return False
