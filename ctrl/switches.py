"""Switch an expanded model for the time of a block: to its base (pretrained), or to another alpha (at_alpha).

Blocks may overlap, in one thread or in several: what they changed comes back when the last one ends.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ctrl.adapters import active_adapter
from ctrl.changes import warn_if_changed
from ctrl.control_model import require_expanded
from ctrl.errors import ConfigError
from ctrl.generation import to_base, to_expansion
from ctrl.interpolation import Interpolation
from ctrl.layer import expanded_layers

_LOCK = threading.Lock()


@contextlib.contextmanager
def pretrained(model: nn.Module) -> Iterator[nn.Module]:
    """Turn the model into the base model, bit for bit, inside the block: no copy runs, no divergence is added.

    Weights of the base that you unfroze and trained stay as trained. `generate` follows the base's own settings, not
    those that `ctrl.load` brought; what you or a trainer set on the model counts in the block too. The block counts for
    all threads. A pass inside it keeps its meaning in a backward pass after the block, with transformers' gradient
    checkpointing too; but a checkpoint of your own around several layers runs them again as the model is then. Warns of
    an active PEFT adapter on top, which stays on, and of frozen weights that are no longer as they were (looked for in
    the first block and in those of a model in eval mode). A copy made inside the block stays switched off, with a
    warning.
    """
    expanded = require_expanded(model)
    control = expanded.control
    if (found := active_adapter(model)) is not None:
        control.say(
            f"ctrl.pretrained turns the copies off, but the PEFT adapter of {found} stays on: base and adapter. "
            "For the base alone open model.disable_adapter() too",
            stacklevel=3,
        )
    if not (model.training and control.compared):  # in each step of a training it would take time
        control.compared = True
        warn_if_changed(expanded, "ctrl.pretrained", whole=False)
    with _LOCK:
        control.off += 1
        control.enabled = False
        if control.off == 1:
            to_base(expanded)
    try:
        yield model
    finally:
        with _LOCK:
            control.off -= 1
            control.enabled = not control.off
            if control.enabled and getattr(expanded, "control", None) is control:  # ctrl.swap may have taken it off
                to_expansion(expanded)


@contextlib.contextmanager
def at_alpha(model: nn.Module, alpha: float | Sequence[float]) -> Iterator[nn.Module]:
    """Use this alpha in every expanded layer and for all tokens inside the block: a dial after training.

    alpha: one number for all layers, or one for each expanded layer, the lowest first.
    0 gives the pretrained branch (plerp: P a), 1 the copy; values outside [0, 1] extrapolate if the formula does.
    `merge_back` mixes weights, this mixes hidden states. Inside the block `merge_back` takes this alpha, `ctrl.save`
    writes the layers' own. A backward pass may come after the block, and a copy made inside it keeps the alpha, as with
    `ctrl.pretrained`. Of overlapping blocks the one that began last counts. A cache that was filled at another alpha is
    read as it is: give a text that is to be read at one alpha a new cache. Raises ConfigError for a stacked layer,
    which mixes nothing.
    """
    control, gates = require_expanded(model).control, _gates(model)
    fixed = _numbers(alpha, len(gates))
    with _LOCK:
        if not control.alphas:
            control.lasting = [gate.fixed_alpha for gate in gates]
        control.alphas.append(fixed)
        _fix(gates, fixed)
    try:
        yield model
    finally:
        with _LOCK:
            control.alphas = [other for other in control.alphas if other is not fixed]
            _fix(gates, control.alphas[-1] if control.alphas else control.lasting)


def set_alpha(model: nn.Module, alpha: float | Sequence[float]) -> None:
    """Set alpha permanently; it is not saved. See `at_alpha` for a temporary change and for errors."""
    control, gates = require_expanded(model).control, _gates(model)
    fixed = _numbers(alpha, len(gates))
    with _LOCK:
        control.lasting = [*fixed]
        _fix(gates, control.lasting)


def _numbers(alpha: float | Sequence[float], count: int) -> list[Tensor]:
    """Return one alpha for each of `count` layers. Raises ConfigError for another number of them."""
    alpha = alpha.tolist() if hasattr(alpha, "tolist") else alpha  # a tensor or an array
    if not isinstance(alpha, list | tuple):
        return [_number(alpha)] * count  # type: ignore[arg-type]
    if len(alpha) != count:
        raise ConfigError(f"alpha={list(alpha)!r}: the model has {count} expanded layers, give one number for each")
    return [_number(one) for one in alpha]


def _gates(model: nn.Module) -> list[Interpolation]:
    """List the interpolations of all layers. Raises ConfigError for stacked layers, which have none."""
    layers = expanded_layers(model)
    if stacked := [layer.index for layer in layers if layer.interpolation is None]:
        raise ConfigError(
            f"at_alpha needs layers that mix two branches, but layers {stacked} are stacked: use ctrl.pretrained for "
            "the base model, or expand with structure='concat'"
        )
    return [layer.interpolation for layer in layers if layer.interpolation is not None]


def _number(alpha: float) -> Tensor:
    try:
        finite = math.isfinite(alpha) and not isinstance(alpha, bool)  # True is 1 to Python
    except TypeError:
        finite = False
    if not finite:
        raise ConfigError(f"alpha={alpha!r} is no finite number: give one, from 0 (pretrained) to 1 (the copies)")
    return torch.tensor(float(alpha), dtype=torch.float32)  # whatever torch's default is


def _fix(gates: Sequence[Interpolation], alphas: Sequence[Tensor | None]) -> None:
    for gate, alpha in zip(gates, alphas, strict=True):
        gate.fixed_alpha = alpha
