"""Modules that interpolate, their gradients, and what they learned by the names of the written formulas."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ctrl.interpolation import Interpolation, build_interpolation
from tests.helpers import reference
from tests.helpers.branches import HIDDEN

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def built(name: str, alpha_start: float = 0.5, trained: bool = False, learned: bool = True) -> Interpolation:
    """A module in float64; `trained` moves what it learned away from its start."""
    torch.manual_seed(0)
    module = build_interpolation(name, HIDDEN, alpha_start, learned).double()
    if trained:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return module


def reference_parameters(module: Interpolation) -> reference.Parameters:
    """What the module learned, by the names of the written formulas; other parameters keep their own."""
    found = {n: p.detach().double().numpy() for n, p in module.named_parameters()}
    found["theta"] = found["theta"].reshape(())
    if (weight := found.pop("weight", None)) is not None:
        found["gate" if weight.shape[0] == 2 else "w"] = weight.squeeze()
    if (offset := found.pop("offset", None)) is not None:
        found["projection"] = np.eye(HIDDEN) + offset
    return found


def gradients(module: Interpolation, *inputs: Tensor) -> list[Tensor]:
    """Of a fixed weighted sum of the output, for a, b and everything that trains."""
    a, b, h = (x.detach().clone().requires_grad_() for x in inputs)
    mixed, _ = module(a, b, h)
    weights = torch.linspace(-1, 1, mixed.numel(), dtype=mixed.dtype).view_as(mixed)
    trained = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad((mixed * weights).sum(), [a, b, *trained], allow_unused=True)
    return [g for g in found if g is not None]
