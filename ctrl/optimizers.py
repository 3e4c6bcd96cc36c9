"""Warn of an optimizer whose steps change nothing, and say nothing.

It was made before the weights that train, or no gradient reaches these. An optimizer keeps the parameters that it was
given. One of the base holds frozen weights after `ctrl.expand`, and one of an expansion holds its copies after
`ctrl.swap`. torch calls a hook before each step of any optimizer.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ctrl.errors import warn
from ctrl.layer import expanded_layers
from ctrl.sharded import is_sharded

STALE = (
    "the optimizer holds no weight that trains, so its steps change nothing: it was made before ctrl.expand, ctrl.load "
    "or ctrl.swap, and holds frozen weights of the base or copies that were taken off. Make a new one from the "
    "parameters that have requires_grad"
)

WITHOUT_GRADIENT = (
    "no copy has had a gradient in three steps of the optimizer, so none has changed: the loss does not depend on "
    "them. Look at alpha_start (a gate that lets no token take a copy, as moe below 0.5), at labels (all -100), and "
    "for a block of ctrl.pretrained, torch.no_grad or detach() around what the loss is made of. In RL the rewards of "
    "each group may have been equal: then all is well, and later steps move the copies"
)
STEPS = 3  # without a gradient, which a batch or two may have by chance

_idle: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()  # steps without a gradient
_watched: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()  # steps that changed nothing
_taken_off: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[nn.Parameter]]] = weakref.WeakKeyDictionary()
_hooks: list[Any] = []


def remember_taken_off(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Note parameters that the model had and has no longer."""
    kept = [one for one in _taken_off.get(model, []) if one() is not None]
    _taken_off[model] = kept + [weakref.ref(parameter) for parameter in parameters]


def watch_optimizers(model: nn.Module) -> None:
    """Look at the next steps of optimizers, until one holds a weight that trains and a copy has a gradient."""
    _watched[model] = _idle[model] = 0
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_look))


def _look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Warn at the second step that changes nothing: with two optimizers the first one may hold frozen weights alone."""
    if torch.compiler.is_compiling() or not (_watched or _idle):
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for model in list(_idle):
        _look_for_gradients(model, held)
    for model, steps in list(_watched.items()):
        own = {id(p): p.requires_grad for p in model.parameters()}
        former = {id(made()) for made in _taken_off.get(model, [])}
        if any(own.get(one) for one in held) or steps > 1:
            del _watched[model]
        elif held & (own.keys() | former):
            _watched[model] = steps + 1
            if steps:
                warn(STALE, stacklevel=4)


def _look_for_gradients(model: nn.Module, held: set[int]) -> None:
    """Warn if an optimizer of all copies steps three times, and none of them has a gradient other than 0."""
    copies = [p for layer in expanded_layers(model) for p in layer.expanded.parameters() if p.requires_grad]
    if not copies or not held.issuperset(map(id, copies)):
        return
    if any(p.grad is not None and (is_sharded(p) or bool(p.grad.any())) for p in copies):
        del _idle[model]
        return
    _idle[model] += 1
    if _idle[model] == STEPS:
        del _idle[model]
        warn(WITHOUT_GRADIENT, stacklevel=5)
