"""Watch whether the divergence is in the loss of a training pass, and warn if it is not.

The model adds it to the loss that it computes itself. A trainer that computes the loss leaves it out.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import unserializable_hook

from ctrl.config import ControlConfig
from ctrl.errors import warn
from ctrl.passes import ForwardPass

COLLECTED = "inside of ctrl.collect_divergence, with a loss to which nothing of it was added,"
UNUSED = "with a loss from the logits or the hidden states"  # cause of a warning


class DivergenceWatch:
    """The part of `Control` that watches the losses of a training. Its fields are among those of `Control`."""

    config: ControlConfig
    enabled: bool
    warned: bool
    waiting: list[Callable[[], None]]
    seen: bool
    used: Tensor | None

    @property
    def adds(self) -> bool:
        """Whether the loss contains a divergence."""
        raise NotImplementedError

    def look(self, model: Any = None) -> None:
        raise NotImplementedError

    def watch(self, outputs: Iterable[Tensor], cause: str, divergence: Tensor | None = None) -> None:
        """Warn if a backward pass reaches an output but not the divergence; None: it is in no loss.

        A pass in eval mode may train too, which is not known before. After a backward pass that keeps its graph the
        divergence may have one of its own, until the next pass of the model. For compiled passes with labels see
        `marked`.
        """
        reached: list[bool] = []
        if not self.may_warn() or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        while self.waiting:
            self.waiting.pop()()
        may_follow = divergence is not None  # of which nothing is held: it would keep the graph

        def check(kept: bool = False) -> None:
            if kept and may_follow:
                self.waiting.append(check)
            elif not reached:
                self.warn_of_loss_without(cause)

        if divergence is not None and divergence.requires_grad:
            divergence.register_hook(lambda _: reached.append(True))
        for output in outputs:
            if output.requires_grad:
                output.register_hook(unserializable_hook(lambda _: _queue_callback(check, _keeps_graph())))

    def watch_collected(self, current: ForwardPass, outputs: Iterable[Tensor]) -> None:
        """Warn if a backward pass reaches an output of a collected pass, but none of its divergences."""
        terms = list((current.divergences or {}).values())
        if terms:  # all of them are in the mean
            self.watch(outputs, COLLECTED, terms[0])

    def look_from(self, device: torch.device) -> None:
        """Prepare `marked` for a model on this device."""
        self.used = None if device.type == "meta" else torch.zeros((), device=device, requires_grad=True)
        if self.used is not None:
            self.used.register_hook(unserializable_hook(functools.partial(_look, weakref.ref(self))))

    def marked(self, loss: Tensor) -> Tensor:
        """Return the loss of a compiled pass, from which `used` gets a gradient: 0 if the loss is not in the backward.

        Hooks on what a compiled pass returns would break its graph. The first gradient shows it for all passes.
        """
        used = self.used
        if used is None or used.device != loss.device or torch.compiler.is_exporting():
            return loss
        return loss + (used - used.detach()).to(loss.dtype)

    def warn_of_loss_without(self, cause: str) -> None:
        """Warn once of a training pass whose loss lacks the divergence. cause: what the caller did."""
        if not self.may_warn():
            return
        if not torch.compiler.is_compiling():
            self.warned = True  # while compiling it would be a reason to compile again
        warn_also_compiled(
            f"a training pass {cause} leaves out divergence={self.config.divergence!r}: the model adds it only to the "
            "loss that it computes itself (Trainer does not pass the labels on with label_smoothing_factor or "
            "compute_loss_func; TRL's trainers and Liger run the decoder and the head themselves). With a trainer of "
            "transformers or TRL call ctrl.attach(trainer) before trainer.train(). In a loop of your own: Pass the "
            "labels to the model and use its loss, or add what ctrl.collect_divergence collects. If you want no "
            "divergence, expand with divergence='none'"
        )

    def may_warn(self) -> bool:
        return self.adds and self.enabled and not self.warned


def _look(reference: weakref.ref[DivergenceWatch], gradient: Tensor) -> None:
    """Warn if the loss of a compiled pass has no gradient, but something else that it returns has."""
    control = reference()
    if control is None:
        return
    control.look()  # no compiled pass did
    if control.seen:
        return
    control.seen = True
    if not gradient.any():
        control.warn_of_loss_without(UNUSED)


def _keeps_graph() -> bool:
    """Whether the backward pass that runs leaves the graph for another one."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _queue_callback(check: Callable[[bool], None], kept: bool) -> None:
    """Call the function at the end of the backward pass that runs."""
    torch.autograd.Variable._execution_engine.queue_callback(lambda: check(kept))


@torch.compiler.assume_constant_result
def warn_also_compiled(message: str) -> None:
    """Warn; torch.compile does it once, while it compiles."""
    warn(message, stacklevel=5)
