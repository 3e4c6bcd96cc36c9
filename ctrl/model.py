"""expand, pretrained, at_alpha, describe: turn a causal LM into a Control LLM in place, and look at it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from ctrl.config import ControlConfig
from ctrl.copies import copy_layer, relax_norms, zero_outputs
from ctrl.divergence import additive_mean, masked_mean
from ctrl.errors import ConfigError
from ctrl.interpolation import build_interpolation
from ctrl.layer import Control, ExpandedLayer, expanded_class, keep_rows
from ctrl.structure import branch_kinds, decoder_layers, is_attention, place

IGNORED = "keys_to_ignore_at_inference"


class ControlModel(nn.Module):
    """Mixin in front of a causal LM's own class: its loss contains the divergence."""

    control: Control
    _forward_names: tuple[str, ...]

    def _forward(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """loss = lm_loss + divergence_weight * divergence where labels are given; else just the base class's forward.

        divergence: mean over expanded layers of the mean over real tokens. With num_items_in_batch (Trainer) both
        parts are sums over sequences, so that accumulated gradients are those of one large batch.
        """
        control = self.control
        kwargs.update(zip(self._forward_names, args, strict=False))
        if control.log is not None:
            control.mask = kwargs.get("attention_mask")
        if kwargs.get("labels") is None or not control.enabled:
            return base(self, **kwargs)
        control.collecting = True
        try:
            out = base(self, **kwargs)
            divergence = self._divergence(out, kwargs)
        finally:
            control.collecting = False
            control.terms.clear()
        return _with_divergence(out, divergence, control.config.divergence_weight)

    def _divergence(self, out: Any, kwargs: dict[str, Any]) -> Tensor:
        lm_loss = out[0]
        terms = list(self.control.terms.values())
        if not terms or self.control.config.divergence == "none":
            return lm_loss.new_zeros((), dtype=torch.float32)
        if self.training and lm_loss.requires_grad and not any(d.requires_grad for d in terms):
            raise RuntimeError(
                "the divergence has no gradient: reentrant gradient checkpointing drops it. Call "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
            )
        labels, total = kwargs["labels"], kwargs.get("num_items_in_batch")
        mask = _token_mask(self.control.config, kwargs.get("attention_mask"), labels, terms[0])
        if total is None:
            means = [masked_mean(d, mask) for d in terms]
        else:
            items = (labels[..., 1:] != -100).sum(-1)
            means = [additive_mean(d, mask, items, total) for d in terms]
        return torch.stack([mean.to(lm_loss.device) for mean in means]).mean()

    def save_pretrained(self, save_directory: Any, state_dict: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """ctrl.save: a folder that from_pretrained would load as a plain, silently different model is never written."""
        from ctrl.saving import save

        if kwargs.get("is_main_process", True):
            save(self, save_directory, state_dict=state_dict)


def expand(model: PreTrainedModel, config: ControlConfig | None = None) -> PreTrainedModel:
    """Expand a causal LM in place and return it: copies placed and trainable, everything else frozen.

    At the start the logits equal the base model's. Raises ConfigError for a model or layers that cannot be expanded.
    """
    config = config or ControlConfig()
    if isinstance(model, ControlModel):
        raise ConfigError("the model is expanded already: expand a fresh base model, or merge_back first")
    layers = decoder_layers(model)
    indices = place(config.layers, len(layers))
    _check_attention(model, config)
    _check_unwrapped(model, layers)
    control = Control(config, indices, len(layers))
    model.requires_grad_(False)
    for slot, (index, kind) in enumerate(zip(indices, branch_kinds(config, len(indices)), strict=True)):
        _expand_layer(layers[index], index, kind, len(layers) + slot, control, model)
    model.__class__ = _control_class(type(model))  # type: ignore[arg-type]
    model.control = control  # type: ignore[assignment]
    ignored = getattr(model.config, IGNORED, None) or []
    setattr(model.config, IGNORED, [*ignored, "lm_loss", "divergence"])  # Trainer.predict returns the logits alone
    return model


def _expand_layer(layer: nn.Module, index: int, kind: str, slot: int, control: Control, model: PreTrainedModel) -> None:
    config = control.config
    twin = copy_layer(layer, slot, model, config)
    interpolation = None
    if kind == "stack":
        zero_outputs(twin)
    else:
        hidden = model.config.get_text_config(decoder=True).hidden_size
        interpolation = build_interpolation(config.interpolation, hidden, config.alpha_start, config.alpha == "learned")
        interpolation.to(next(layer.parameters()).device)
    relax_norms(twin, config.norm_mix, interpolation)
    twin.train(layer.training)
    layer.__class__ = expanded_class(type(layer))  # type: ignore[arg-type]
    layer.expanded = twin
    layer.interpolation = interpolation  # type: ignore[assignment]
    layer.control, layer.index, layer.kind = control, index, kind  # type: ignore[assignment]
    if config.divergence == "attention":
        for module in layer.modules():
            if is_attention(module):
                module.register_forward_hook(keep_rows)


def expanded_layers(model: nn.Module) -> list[ExpandedLayer]:
    """The expanded layers of a model, in order."""
    return [m for m in model.modules() if isinstance(m, ExpandedLayer)]


def require_expanded(model: nn.Module) -> ControlModel:
    """The model itself, or the one inside a wrapper (DDP, PEFT, torch.compile). Raises if there is none."""
    for module in model.modules():
        if isinstance(module, ControlModel):
            return module
    raise ConfigError(f"{type(model).__name__} is not expanded: call ctrl.expand(model, config) first")


@contextlib.contextmanager
def pretrained(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the model is the base model again, bit for bit: no copy runs, no divergence is added."""
    control = require_expanded(model).control
    before, control.enabled = control.enabled, False
    try:
        yield model
    finally:
        control.enabled = before


@contextlib.contextmanager
def at_alpha(model: nn.Module, alpha: float) -> Iterator[nn.Module]:
    """Inside the block every expanded layer mixes all tokens with this share of its copy: a dial after training.

    0 gives the pretrained branch (plerp: P a), 1 the copy, values beside [0, 1] extrapolate where the formula does.
    Unlike `merge_back` at alpha, hidden states are mixed, not weights. Raises ConfigError for a stacked layer, which
    mixes nothing.
    """
    before = [layer.interpolation and layer.interpolation.held for layer in expanded_layers(require_expanded(model))]
    hold_alpha(model, alpha)
    try:
        yield model
    finally:
        for layer, held in zip(expanded_layers(model), before, strict=True):
            layer.interpolation.held = held  # type: ignore[union-attr]  # hold_alpha has checked


def hold_alpha(model: nn.Module, alpha: float) -> None:
    """`at_alpha` without an end."""
    layers = expanded_layers(require_expanded(model))
    if stacked := [layer.index for layer in layers if layer.interpolation is None]:
        raise ConfigError(f"at_alpha needs layers that mix two branches, but layers {stacked} are stacked")
    for layer in layers:
        layer.interpolation.held = torch.tensor(float(alpha))  # type: ignore[union-attr]


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """One expanded layer. alpha: share of the copy at theta (None for stack); trainable: parameters that train."""

    layer: int
    branch: str
    trainable: int
    alpha: float | None


class Description(list[LayerInfo]):
    """What expand did, as rows; prints as a table."""

    def __str__(self) -> str:
        rows = [f"{'layer':>5}  {'branch':<7} {'trainable':>13}  {'alpha':>6}"]
        for row in self:
            alpha = "-" if row.alpha is None else f"{row.alpha:.3f}"
            rows.append(f"{row.layer:>5}  {row.branch:<7} {row.trainable:>13,}  {alpha:>6}")
        rows.append(f"{'sum':>5}  {'':<7} {sum(row.trainable for row in self):>13,}")
        return "\n".join(rows)


def describe(model: nn.Module) -> Description:
    """Which layers train: one row per expanded layer."""
    rows = Description()
    for layer in expanded_layers(require_expanded(model)):
        alpha = None
        if layer.interpolation is not None:
            alpha = torch.sigmoid(layer.interpolation.theta.detach().float()).item()
        trainable = sum(p.numel() for p in layer.parameters() if p.requires_grad)
        rows.append(LayerInfo(layer.index, layer.kind, trainable, alpha))
    return rows


@functools.cache
def _control_class(cls: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A subclass of cls with the divergence in its loss. Name and forward signature stay: Trainer, generate and
    FSDP look at both."""

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


def _token_mask(config: ControlConfig, attention_mask: Tensor | None, labels: Tensor, like: Tensor) -> Tensor | None:
    """Which tokens (batch, seq) count. A mask longer than the sequence covers cached tokens too: its end is taken."""
    if config.divergence_tokens == "labels":
        return labels != -100
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return attention_mask[:, -like.shape[1] :].bool()


def _with_divergence(out: Any, divergence: Tensor, weight: float) -> Any:
    if isinstance(out, tuple):  # return_dict=False
        return (out[0] + weight * divergence, *out[1:])
    values = {f.name: getattr(out, f.name) for f in dataclasses.fields(out)}
    values["loss"] = out.loss + weight * divergence
    return _output_class(type(out))(**values, lm_loss=out.loss, divergence=divergence)


def _output_class(cls: type[ModelOutput]) -> type[ModelOutput]:
    """cls with the fields lm_loss and divergence. Fields, since autocast wrappers rebuild outputs from their fields."""
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


def _check_unwrapped(model: nn.Module, layers: nn.ModuleList) -> None:
    """A forward set on an instance (accelerate's device_map hooks, Trainer's autocast) would hide the new class's."""
    for module in (model, *layers):
        own = vars(module).get("forward")
        if getattr(own, "__func__", None) is type(module).forward:
            del module.forward  # the class's own, left behind by a hook that was removed
    if any("forward" in vars(module) for module in (model, *layers)):
        raise ConfigError(
            f"{type(model).__name__} has hooks around its forward (a device_map over several devices, or a prepared "
            "model): expand it before it is dispatched or given to a trainer, or remove the hooks first "
            "(accelerate.hooks.remove_hook_from_submodules)"
        )


def _check_attention(model: PreTrainedModel, config: ControlConfig) -> None:
    if config.divergence == "attention" and model.config._attn_implementation != "eager":
        raise ConfigError(
            f"divergence='attention' needs attention weights, which {model.config._attn_implementation!r} attention "
            "does not return: load the model with attn_implementation='eager'"
        )
