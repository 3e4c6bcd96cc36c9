"""Run a decoder layer together with its trainable copy, and mix the two outputs (paper Fig. 5).

The layer stays the same object at the same place in the model, with the same parameter names; only its class is
replaced by a subclass. So masks, position embeddings, hidden-state recording, checkpointing and device placement work
as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from ctrl.attention_rows import rows_of, with_rows
from ctrl.cache import add_cache_slots, note_run_without_copies
from ctrl.classes import made_once
from ctrl.control import Control
from ctrl.divergence import DIVERGENCES
from ctrl.interpolation import Interpolation
from ctrl.numerics import widen
from ctrl.passes import ForwardPass
from ctrl.precision import HalfComputing
from ctrl.streams import alpha_of_tokens, by_token, over_streams

ADDED = ("expanded.", "interpolation.")  # prefixes of the parameters that expand adds to a layer
ALONE = "that runs the decoder without the model's forward"  # cause of a warning
RUN = "control_run"  # keyword in which a layer passes a LayerRun on to its forward


class LayerRun:
    """What one run of a layer does. Gradient checkpointing runs the layer again with the same object.

    It is no dataclass, since FSDP copies those that it finds among a layer's arguments.

    current: the pass, None if the decoder was called by itself. enabled: whether the copy runs.
    fixed_alpha: replaces alpha. measure: whether the divergence is computed: for its gradient, for the log alone
    (without one), or not.
    """

    def __init__(
        self,
        current: ForwardPass | None,
        enabled: bool,
        fixed_alpha: Tensor | None = None,
        measure: Literal["gradient", "value"] | None = None,
    ) -> None:
        self.current, self.enabled, self.fixed_alpha, self.measure = current, enabled, fixed_alpha, measure


class ExpandedLayer(nn.Module):
    """Mixin in front of a decoder layer's own class: a = F(h), b = E(h), out = interpolation(a, b, h).

    expanded: the copy E. kind: `concat` as above, `stack` for out = E(F(h)) without an interpolation.
    attention_handles: hooks that keep attention weights, only if the divergence is `attention`.
    """

    expanded: nn.Module
    interpolation: Interpolation | None
    control: Control
    index: int
    kind: str
    attention_handles: Sequence[RemovableHandle] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{**kwargs, RUN: self._plan()})

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = kwargs.pop(RUN, None) or self._plan()
        if self.attention_handles:
            return with_rows(self._run, run, hidden_states, *args, **kwargs)
        return self._run(run, hidden_states, *args, **kwargs)

    def _plan(self) -> LayerRun:
        """Decide what this run of the layer does; warn if a training pass would lose its divergence."""
        control, current = self.control, self.control.current
        again = current is None and _in_backward()  # run again by a checkpoint around the whole layer
        if self.training and torch.is_grad_enabled():
            control.look()
            if current is None and not again:
                control.warn_of_loss_without(ALONE)
        fixed = None if self.interpolation is None else self.interpolation.fixed_alpha
        if not control.enabled or self.interpolation is None or control.config.divergence == "none":
            return LayerRun(current, control.enabled, fixed)
        added = current is not None and current.divergences is not None
        if control.adds and (added or (again and self.training)):
            return LayerRun(current, True, fixed, "gradient")
        logged = bool(control.logs) and current is not None and (added or self.training)
        return LayerRun(current, True, fixed, "value" if logged else None)

    def _run(self, run: LayerRun, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if run.enabled:
            add_cache_slots(self.control, self.index, args, kwargs)
        else:
            note_run_without_copies(self.control, args, kwargs)
        out = self._pretrained(super().forward, hidden_states, *args, **kwargs)
        if not run.enabled:
            return out
        a = _hidden(out)
        if self.interpolation is None:
            b = _hidden(self._copy(a, *args, **kwargs))
            self._note(run, a, b, None, None)
            return _with_hidden(out, b)
        b = _hidden(self._copy(hidden_states, *args, **kwargs))
        wide_a, wide_b = widen(a), widen(b)  # once, for the mix and the divergence
        mixed, alpha = self.interpolation(wide_a, wide_b, hidden_states, run.fixed_alpha)
        self._note(run, a, b, alpha, self._measured(run, wide_a, wide_b, alpha))
        mixed = mixed.to(a.dtype)
        # as the last operation: a backward pass then enters the layer here, where FSDP gathers its parameters, and not
        # through the divergence, which needs them too
        mixed = mixed.view_as(mixed) if run.measure == "gradient" else mixed
        if run.current is None and not _in_backward():
            self.control.watch([mixed], ALONE)
        return _with_hidden(out, mixed)

    def _pretrained(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the frozen layer; with `checkpoint_pretrained` its activations are computed again when needed."""
        asked = self.control.config.checkpoint_pretrained or self.control.recomputes
        again = asked and self.training and torch.is_grad_enabled()
        around = getattr(self, "gradient_checkpointing", False)  # then the whole layer runs again
        cached = any(isinstance(value, Cache) for value in (*args, *kwargs.values()))  # running again would fill it
        if again and cached and not around and not torch.compiler.is_compiling():
            self.control.warn_of_kept_activations()
        if not again or around or cached:
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    def _copy(self, *args: Any, **kwargs: Any) -> Any:
        """Run the copy; if its weights are wider than the layer's, as these are."""
        if isinstance(self.expanded, HalfComputing):
            return self.expanded.next_to(self, *args, **kwargs)
        return self.expanded(*args, **kwargs)

    def _measured(self, run: LayerRun, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor | None:
        """Compute the divergence per token (batch, seq) if the run needs it, and add it to those of the pass."""
        if run.measure is None:
            return None
        with nullcontext() if run.measure == "gradient" else torch.no_grad():
            per_token = self._divergence(a, b, alpha)
        if run.current is not None and run.current.running and run.current.divergences is not None:
            run.current.divergences[self.index] = per_token
        return per_token

    def _note(self, run: LayerRun, a: Tensor, b: Tensor, alpha: Tensor | None, per_token: Tensor | None) -> None:
        control = self.control
        if control.logs and run.current is not None and run.current.running:
            dim = control.batch_dim
            alpha = None if alpha is None else alpha_of_tokens(alpha, dim)
            for log in list(control.logs.values()):
                log.note(self, by_token(a, dim), by_token(b, dim), alpha, per_token, run.current.marks)

    def _divergence(self, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
        """Compute the divergence per token (batch, seq), scaled by alpha if the config says so."""
        config = self.control.config
        if config.divergence == "attention":
            a, b = (rows_of(branch) for branch in (self, self.expanded))
        a = a.detach() if config.detach_pretrained else a  # before P, which still trains
        if config.divergence != "attention" and self.interpolation is not None:
            a = self.interpolation.compared(a)
        per_token = DIVERGENCES[config.divergence](a, b, config.margin)
        if config.scale_by_alpha:
            alpha = alpha.detach() if config.detach_alpha else alpha
            per_token = per_token * (alpha.squeeze(-1) if alpha.dim() else alpha)
        return over_streams(per_token, self.control.batch_dim)


@made_once
def expanded_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Make a subclass of cls that runs both branches. It keeps the name, which sharding plans and recorders use."""
    members = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": ExpandedLayer.__doc__}
    return type(cls.__name__, (ExpandedLayer, cls), members)


def expanded_layers(model: nn.Module) -> list[ExpandedLayer]:
    """List the expanded layers of a model in order."""
    return [m for m in model.modules() if isinstance(m, ExpandedLayer)]


def is_added(name: str) -> bool:
    """Whether a parameter or buffer of an expanded model is of a copy or an interpolation, by its name."""
    return any(f".{part}" in name for part in ADDED)


def class_before(module: nn.Module, mixin: type) -> type:
    """Return the class of the module before a mixin was put in front of it."""
    classes = type(module).__mro__  # fully_shard puts classes of its own in front
    return next(one for one in classes[classes.index(mixin) :] if one not in mixin.__mro__)


def _in_backward() -> bool:
    """Return whether this thread is in a backward pass, where checkpoints run layers again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _hidden(out: Any) -> Tensor:
    """Return the hidden state in a decoder layer's output: a tensor or, in older models, the first of a tuple."""
    return out[0] if isinstance(out, tuple) else out


def _with_hidden(out: Any, hidden: Tensor) -> Any:
    return (hidden, *out[1:]) if isinstance(out, tuple) else hidden
