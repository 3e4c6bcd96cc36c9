"""ControlModel: the mixin that adds the divergence to the loss of a causal LM."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from ctrl.checkpoint import write_checkpoint
from ctrl.divergence import additive_mean, masked_mean, real_tokens
from ctrl.errors import ConfigError
from ctrl.layer import Control, ExpandedLayer, ForwardPass, expanded_layers
from ctrl.sharded import is_sharded

IGNORED = "keys_to_ignore_at_inference"


class ControlModel(nn.Module):
    """Mixin in front of a causal LM's own class: adds the divergence to its loss, and saves only what was trained."""

    control: Control
    _forward_names: tuple[str, ...]

    def _forward(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute loss = lm_loss + divergence_weight * divergence if labels are given, else run the base class only.

        divergence: mean over expanded layers of the mean over real tokens. With num_items_in_batch (Trainer) both
        parts are sums over sequences, so accumulated gradients equal those of one large batch.
        """
        control = self.control
        kwargs.update(zip(self._forward_names, args, strict=False))
        divergences: dict[int, Tensor] | None = {}
        if kwargs.get("labels") is None or not control.enabled:
            divergences = None
            self._warn_of_no_divergence()
        control.current = ForwardPass(kwargs.get("attention_mask"), divergences)
        try:
            out = base(self, **kwargs)
        finally:
            control.current = None
        if divergences is None:
            return out
        divergence = self._divergence(out[0], list(divergences.values()), kwargs)
        return _with_divergence(out, divergence, control.config.divergence_weight)

    def _divergence(self, lm_loss: Tensor, terms: list[Tensor], kwargs: dict[str, Any]) -> Tensor:
        """Average over layers and tokens. terms: the divergence per token (batch, seq) of each expanded layer."""
        if not terms or self.control.config.divergence == "none":
            return lm_loss.new_zeros((), dtype=torch.float32)
        if lm_loss.requires_grad and not any(d.requires_grad for d in terms) and self._checkpoints_copies():
            raise RuntimeError(
                "the divergence has no gradient: reentrant gradient checkpointing drops it. Call "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
            )
        labels, total = kwargs["labels"], kwargs.get("num_items_in_batch")
        mask = real_tokens(kwargs.get("attention_mask"), terms[0].shape[1])
        if self.control.config.divergence_tokens == "labels":
            labelled = labels != -100
            mask = labelled if mask is None else labelled & mask.to(labels.device)
        if total is None:
            means = [masked_mean(d, mask) for d in terms]
        else:
            items = (labels[..., 1:] != -100).sum(-1)
            means = [additive_mean(d, mask, items, total) for d in terms]
        return torch.stack([mean.to(lm_loss.device) for mean in means]).mean()

    def _checkpoints_copies(self) -> bool:
        """Return whether gradient checkpointing runs a trainable parallel copy again in the backward pass."""
        layers = [m for m in self.modules() if isinstance(m, ExpandedLayer) and m.interpolation is not None]
        again = [layer for layer in layers if layer.training and getattr(layer, "gradient_checkpointing", False)]
        return any(p.requires_grad for layer in again for p in layer.expanded.parameters())

    def _warn_of_no_divergence(self) -> None:
        """Warn once of a training pass without labels. Trainer may have kept them for a loss of its own, which then
        lacks the divergence without an error."""
        control = self.control
        config = control.config
        wanted = config.divergence != "none" and config.divergence_weight > 0 and config.structure != "stack"
        training = self.training and torch.is_grad_enabled() and control.enabled
        if control.warned or not wanted or not training or torch.compiler.is_compiling():
            return
        control.warned = True
        warnings.warn(
            f"a training pass without labels leaves out divergence={config.divergence!r}: the model adds it only to "
            "the loss that it computes itself (Trainer does not pass the labels on with label_smoothing_factor or "
            "compute_loss_func). Pass the labels to the model; add divergence_weight * output.divergence to a loss of "
            "your own. If you want no divergence, expand with divergence='none'",
            stacklevel=3,
        )

    def save_pretrained(self, save_directory: Any, state_dict: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the folder of `ctrl.save`. The base class's folder would load as a plain, silently different model."""
        sharded = state_dict is None and any(map(is_sharded, self.state_dict().values()))  # then every process calls
        if sharded or kwargs.get("is_main_process", True):
            write_checkpoint(bare_expanded(self), save_directory, state_dict)


@functools.cache
def control_class(cls: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Make a subclass of cls with the divergence in its loss. It keeps the name and the forward signature, which
    Trainer, generate and FSDP read."""

    @functools.wraps(cls.forward)
    def forward(self: ControlModel, *args: Any, **kwargs: Any) -> Any:
        return self._forward(cls.forward, *args, **kwargs)

    names = tuple(inspect.signature(cls.forward).parameters)[1:]
    members = {
        "forward": forward,
        "_forward_names": names,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    return type(cls.__name__, (ControlModel, cls), members)


def require_expanded(model: nn.Module) -> ControlModel:
    """Return the expanded model: the given one, or the one in a wrapper (DDP, PEFT, torch.compile).

    Raises ConfigError if there is none.
    """
    for module in model.modules():
        if isinstance(module, ControlModel):
            return module
    raise ConfigError(f"{type(model).__name__} is not expanded: call ctrl.expand(model, config) first")


def bare_expanded(model: nn.Module) -> ControlModel:
    """Return the expanded model without its wrapper. Raises ConfigError if it holds PEFT adapters."""
    expanded = require_expanded(model)
    found = [type(model).__name__] if type(model).__module__.partition(".")[0] == "peft" else []
    own: set[nn.Module] = set()
    if expanded.control.config.expanded == "lora":  # low-rank copies are adapters too
        own = {module for layer in expanded_layers(expanded) for module in layer.expanded.modules()}
    for name, module in expanded.named_modules():
        wrapped = (getattr(module, inner, None) for inner in ("base_layer", "original_module"))
        if module not in own and any(isinstance(inner, nn.Module) for inner in wrapped):
            found.append(name)
    if found:
        raise ConfigError(
            f"{found[0]} holds a PEFT adapter on top of the expanded model: call merge_and_unload() first. Before "
            "ctrl.save, which writes only what trains, call requires_grad_(True) on weights that the adapters changed "
            "outside the copies"
        )
    return expanded


def _with_divergence(out: Any, divergence: Tensor, weight: float) -> Any:
    if isinstance(out, tuple):  # return_dict=False
        return (out[0] + weight * divergence, *out[1:])
    values = {f.name: getattr(out, f.name) for f in dataclasses.fields(out)}
    values["loss"] = out.loss + weight * divergence
    return _output_class(type(out))(**values, lm_loss=out.loss, divergence=divergence)


def _output_class(cls: type[ModelOutput]) -> type[ModelOutput]:
    """Make a subclass of cls with the fields lm_loss and divergence.

    They must be fields: autocast wrappers rebuild an output from its fields.
    """
    if cls not in _OUTPUTS:
        extra = [("lm_loss", Tensor | None, None), ("divergence", Tensor | None, None)]
        _OUTPUTS[cls] = dataclasses.make_dataclass(f"Control{cls.__name__}", extra, bases=(cls,))
    return _OUTPUTS[cls]


@dataclasses.dataclass
class ControlOutput(CausalLMOutputWithPast):
    """Output of a forward pass with labels. lm_loss: cross entropy; divergence: before its weight."""

    lm_loss: Tensor | None = None
    divergence: Tensor | None = None


_OUTPUTS: dict[type[ModelOutput], type[ModelOutput]] = {CausalLMOutputWithPast: ControlOutput}
