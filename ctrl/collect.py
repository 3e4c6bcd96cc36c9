"""Add the divergence to a loss that the model does not compute itself.

The model adds the divergence to its own loss. TRL's trainers, Liger, or a loop with a loss of its own run the decoder
and the head themselves, or use the logits alone: `attach` changes such a trainer, `collect_divergence` is for loops.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ctrl.control_model import ControlModel, require_expanded
from ctrl.errors import ConfigError, warn
from ctrl.initial import warn_of_reference
from ctrl.losses import loss_is_a_mean, reads_total
from ctrl.outputs import tensors
from ctrl.passes import ForwardPass, mean_divergence, unpacked_ids
from ctrl.training import check_gradients, refuse_options, warn_of_unmarked_padding

IN_THREADS = (
    "nn.DataParallel runs the model in other threads, where no divergence is collected: start one process per GPU with "
    "torchrun, or use the model's own loss"
)
NOTHING = (
    "ctrl.collect_divergence has seen no pass of the model with gradients, so the divergence is 0 here: run the model, "
    "or its decoder, inside of the block, in the same thread. If it was compiled in a pass before the block, which "
    "stays so, call torch.compiler.reset() once"
)
AnyTrainer = TypeVar("AnyTrainer")


class Collected:
    """The divergence of the passes inside `collect_divergence`."""

    def __init__(self, model: ControlModel) -> None:
        self.model = model
        self.passes: list[ForwardPass] = []
        self._gradients = torch.is_grad_enabled()

    def add(self, current: ForwardPass) -> None:
        """Keep a pass. Those without gradients (of a reference, say) do not count if the block has gradients."""
        if torch.is_grad_enabled() == self._gradients:
            current.divergences = {}
            self.passes.append(current)

    def divergence(self, labels: Tensor | None = None, total: Tensor | int | None = None) -> Tensor:
        """Return the mean over expanded layers of the mean over the tokens of all passes; 0 if none was measured.

        labels: (batch, seq), for `divergence_tokens="labels"` or a total, if the model did not get them.
        total: labelled tokens of all micro-batches of the optimiser step, as Trainer counts them: without the first
        token of each row, which nothing predicts, `(labels[:, 1:] != -100).sum()`. Micro-batches then add up.
        """
        if self._gradients:
            check_gradients(self.model, *self.passes)
        for one in self.passes:
            one.labels = labels if one.labels is None else one.labels
            if self._gradients and self.model.training:
                warn_of_unmarked_padding(self.model, one)
        device = next(self.model.parameters()).device
        tokens = self.model.control.config.divergence_tokens
        found = mean_divergence(self.passes, tokens, device, total)
        control = self.model.control
        if found is None and self._gradients and control.may_warn():
            control.warned = True
            warn(NOTHING, stacklevel=3)
        return torch.zeros((), device=device) if found is None else found

    def weighted(self, labels: Tensor | None = None, total: Tensor | int | None = None) -> Tensor:
        """Return divergence_weight * divergence, the term of the loss. See `divergence`."""
        return self.model.control.config.divergence_weight * self.divergence(labels, total)


@contextlib.contextmanager
def collect_divergence(model: nn.Module) -> Iterator[Collected]:
    """Collect the divergence of all passes of this thread inside the block, for a loss of your own.

        with ctrl.collect_divergence(model) as collected:
            loss = my_loss(model.base_model(input_ids).last_hidden_state)
        loss = loss + collected.weighted()

    Inside the block the model's own loss is the LM loss alone, so that nothing counts twice. Raises ConfigError for a
    plain model, and for nn.DataParallel, whose passes run in other threads.
    """
    if isinstance(model, nn.DataParallel):
        raise ConfigError(IN_THREADS)
    expanded = require_expanded(model)
    thread, collected = expanded.control.thread, Collected(expanded)
    causal: Any = expanded
    decoders = dict.fromkeys((causal.base_model, causal.get_decoder()))
    hooks = [hook for decoder in decoders if decoder is not causal for hook in _as_passes(decoder, expanded)]
    before, thread.collected = thread.collected, collected
    try:
        yield collected
    finally:
        thread.collected = before
        for hook in hooks:
            hook.remove()


def attach(trainer: AnyTrainer) -> AnyTrainer:
    """Make the loss of a trainer (transformers, TRL) contain the divergence, however it runs the model; return it.

        trainer = ctrl.attach(SFTTrainer(model, ...))
        trainer.train()

    Needed only where the model warns: a trainer that uses the model's own loss has the divergence already, and
    `attach` leaves its losses as they are (of a `compute_loss` that multiplies the model's loss, the divergence
    keeps its own weight). The divergence is scaled as the trainer's own loss: over gradient accumulation and
    processes it is that of one large batch if the trainer divides by the tokens of the whole batch, as SFTTrainer
    does. Otherwise (DPO, classifiers) each micro-batch has a mean of its own, and rows of unlike length other
    weights. Raises ConfigError for a trainer of a plain model, one without `compute_loss`, nn.DataParallel, TRL's
    `sync_ref_model` and `use_vllm`; in the first step for one that does not call its `compute_loss` (TRL's
    OnlineDPOTrainer).
    """
    changed: Any = trainer
    expanded = require_expanded(getattr(changed, "model", changed))
    if not callable(getattr(changed, "compute_loss", None)):
        raise ConfigError(
            f"{type(trainer).__name__} has no compute_loss: use ctrl.collect_divergence in its training step"
        )
    refuse_options(changed)
    if changed.args.n_gpu > 1:
        raise ConfigError(IN_THREADS)
    warn_of_reference(expanded, changed, stacklevel=2)
    if not hasattr(changed.compute_loss, "without_divergence"):
        changed.compute_loss = _with_divergence(changed, changed.compute_loss)
        if hasattr(changed, "training_step"):  # a trainer of another kind may have none
            changed.training_step = _sure_of_divergence(changed, changed.training_step)
    return trainer


def _with_divergence(trainer: Any, compute: Any) -> Any:
    """Wrap `compute_loss`."""

    @functools.wraps(compute)
    def compute_loss(
        model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        labels = inputs.get("labels") if isinstance(inputs, Mapping) else None  # before Trainer takes them out
        kwargs |= {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        with collect_divergence(model) as collected:
            result = compute(model, inputs, **kwargs)
        loss, *outputs = result if return_outputs else (result,)
        loss = loss + _scaled(trainer, loss, collected, labels, num_items_in_batch).to(loss.device)
        trainer.divergence_added = True
        return (loss, *outputs) if return_outputs else loss

    compute_loss.without_divergence = compute  # type: ignore[attr-defined]
    return compute_loss


def _sure_of_divergence(trainer: Any, step: Any) -> Any:
    """Wrap `training_step`: raise ConfigError if it computes its loss without `compute_loss`."""

    @functools.wraps(step)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        trainer.divergence_added = False
        loss = step(*args, **kwargs)
        if not trainer.divergence_added:
            raise ConfigError(
                f"{type(trainer).__name__} computes its loss without compute_loss, so ctrl.attach cannot add the "
                "divergence: put ctrl.collect_divergence around the passes in its training_step and add what it "
                "collects, or expand with divergence='none'"
            )
        return loss

    return training_step


def _scaled(
    trainer: Any, loss: Tensor, collected: Collected, labels: Tensor | None, total: Tensor | int | None
) -> Tensor:
    """Return the weighted divergence, scaled as the trainer scales this loss for accumulation and processes."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is None:
        scaled = (trainer.model_accepts_loss_kwargs and total is not None) or trainer.compute_loss_func is not None
    if not scaled or _ignores_total(trainer, loss, collected):
        return collected.weighted(labels)  # Trainer divides a mean by the number of micro-batches, or does not
    if total is None or labels is None:
        steps = trainer.current_gradient_accumulation_steps if collected.model.training else 1
        return collected.weighted(labels) / steps
    averaged = trainer.args.average_tokens_across_devices  # then the total counts the tokens of all processes
    return collected.weighted(labels, total) * (trainer.accelerator.num_processes if averaged else 1)


def _ignores_total(trainer: Any, loss: Tensor, collected: Collected) -> bool:
    """Whether this loss of the user's own compute_loss, or compute_loss_func, is a mean: it does not read the total.

    Trainer takes its loss for scaled, so it is not divided by the number of micro-batches. A compute_loss that reads
    the total, and gives the model labels without it, has another loss than the model's, or returns that mean.
    """
    compute, of_model = trainer.compute_loss.without_divergence, getattr(collected.model, "_loss_function", None)
    means = [one.loss for one in collected.passes if one.labels is not None and one.total is None]
    reads = all(map(reads_total, filter(None, (compute, of_model))))
    if means and (not reads or any(one is loss for one in means)):
        return True
    if getattr(trainer, "loss_is_scaled_for_ga", None) is not None:  # the trainer itself says it
        return False
    function = getattr(trainer, "compute_loss_func", None)
    as_shipped = (
        compute.__module__ == "transformers.trainer" and not function and not getattr(trainer, "label_smoother", 0)
    )
    if as_shipped and not isinstance(trainer.model, ControlModel):  # a wrapper, which may have a loss of its own
        return loss_is_a_mean(type(trainer.model))
    return not all(map(reads_total, filter(None, (compute, function))))


def _as_passes(decoder: nn.Module, expanded: ControlModel) -> list[RemovableHandle]:
    """Add hooks that make a call of the decoder a pass, unless the model itself runs one in this thread."""
    control, names = expanded.control, tuple(inspect.signature(type(decoder).forward).parameters)[1:]

    @torch.compiler.disable
    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not decoder:  # of a copy.deepcopy made inside the block, which has these hooks too
            return
        if control.current is None and control.thread.collected is not None:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if module.training and torch.is_grad_enabled():
                control.look(expanded)
            mask, positions = given.get("attention_mask"), given.get("position_ids")
            control.begin(ForwardPass(mask, decoder=module, ids=unpacked_ids(given), positions=positions))

    @torch.compiler.disable
    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if control.current is not None and control.current.decoder is module:
            control.watch_collected(control.current, tensors(output))
            control.end()

    return [
        decoder.register_forward_pre_hook(begin, with_kwargs=True),
        decoder.register_forward_hook(end, always_call=True),
    ]
