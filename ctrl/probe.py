"""Run a model on four tokens before it is expanded: what its layers get and return shows whether copies will be right.

Seen in one pass: where batch and sequence are in the hidden state, which cache the layers use, which values they pass
on to each other, and which parameters of a copy can get a gradient. Costs one pass of four tokens through the decoder,
and a second one of up to 512 if some parameters get none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, cache_utils
from transformers.cache_utils import Cache

from ctrl.copies import original_class
from ctrl.errors import ConfigError, warn
from ctrl.idle import idle, leaves
from ctrl.indices import computes_with_index, indexed
from ctrl.post_norms import norms_of_zeros, start_at_norms
from ctrl.quantised import as_in_training, has_quantised
from ctrl.sharded import sharded
from ctrl.streams import batch_dims

TOKENS = 4
LONG = 512  # tokens of a second pass, if some parameters of copies get no gradient in the first
SAME = 1e-4  # relative distance of a copy from its layer that rounding alone explains, in fp32
CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past", "cache_params")


@dataclass(frozen=True)
class StateShape:
    """Form of a hidden state: which dimension is the batch (see `ctrl.streams`), and the size of the last one.

    batch_dim is None if no tokens were run.
    """

    batch_dim: int | None
    hidden: int


@dataclass
class Probe:
    """Hooks on the layers of a model, and what they have seen.

    copies: index of the layer to expand -> its copy. stacked: the indices whose copies must start as the identity.
    """

    layers: nn.ModuleList
    copies: Mapping[int, nn.Module]
    stacked: set[int]
    tokens: int = TOKENS
    shape: StateShape | None = None
    reached: set[int] = field(default_factory=set, repr=False)  # ids of the copies' parameters that get a gradient
    ran: set[int] = field(default_factory=set)
    passed_on: dict[int, int] = field(default_factory=dict)  # id of a value next to the hidden state -> its layer
    apart: dict[int, float] = field(default_factory=dict)  # layers from which their copies differ: how much
    kept: list[Any] = field(default_factory=list)  # those values: an id is unique only while its object lives

    def hooks(self) -> Iterator[Any]:
        for i, layer in enumerate(self.layers):
            yield layer.register_forward_pre_hook(
                lambda _, args, kwargs, i=i: self._before(i, args, kwargs), with_kwargs=True
            )
            yield layer.register_forward_hook(lambda _, args, out, i=i: self._after(i, out))

    def _before(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, *rest = args or (kwargs["hidden_states"],)
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self._note_state(hidden, index)
        _check_cache(self._name(index), {**dict(enumerate(rest)), **others})
        rest, others = [_no_cache(v) for v in rest], {k: _no_cache(v) for k, v in others.items()}
        self._check_passed_on(index, hidden, rest, others)
        if index in self.copies:
            self.ran.add(index)
            self._run_copy(index, hidden, rest, others)

    def _after(self, index: int, out: Any) -> None:
        extras = [value for value in out[1:] if isinstance(value, Tensor)] if isinstance(out, tuple) else []
        self.kept += extras
        for value in extras:
            self.passed_on.setdefault(id(value), index)

    def _name(self, index: int) -> str:
        return original_class(self.layers[index]).__name__

    def _note_state(self, hidden: Tensor, index: int) -> None:
        found = [StateShape(dim, hidden.shape[-1]) for dim in batch_dims(hidden.shape, 1, self.tokens)]
        if len(found) != 1 or self.shape not in (None, *found):
            raise ConfigError(
                f"{self._name(index)} gets hidden states of shape {tuple(hidden.shape)} for a batch of 1 with "
                f"{self.tokens} tokens: which values belong to which token is unknown, so it cannot be expanded. "
                "Use another architecture"
            )
        self.shape = found[0]

    def _check_passed_on(self, index: int, hidden: Tensor, rest: list[Any], others: dict[str, Any]) -> None:
        """Raise ConfigError if this layer reads a value of an expanded layer that is not the hidden state."""
        for value in (*rest, *others.values()):
            source = self.passed_on.get(id(value))
            if source in self.copies and _reads(self.layers[index], value, hidden, rest, others):
                raise ConfigError(
                    f"layer {source}, a {self._name(index)}, returns a second value next to the hidden state, which "
                    f"layer {index} reads: that of the copy cannot be mixed with it, so it cannot be expanded. Choose "
                    "other layers or another architecture"
                )

    def _run_copy(self, index: int, hidden: Tensor, rest: list[Any], others: dict[str, Any]) -> None:
        """Run the copy on noise; freeze what cannot train. Check that a stacked one is the identity."""
        copied = self.copies[index].eval()
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(index), device="cpu").to(hidden)

        def run() -> Tensor:
            with torch.enable_grad(), as_in_training(copied):
                out = copied(noise, *rest, **others)
            return out[0] if isinstance(out, tuple) else out

        try:
            with norms_of_zeros(copied) as norms:
                out = run()
        except Exception as error:
            raise ConfigError(
                f"a copy of layer {index}, a {self._name(index)}, does not run ({type(error).__name__}: {error}), so "
                "it cannot be expanded. Use another architecture"
            ) from error
        self.reached |= leaves(out)
        self._check_index(index, noise, rest, others)
        if index not in self.stacked and has_quantised(self.layers[index]):
            self._compare(index, out, self.layers[index].forward(noise, *rest, **others))
        if index in self.stacked:
            self._check_identity(index, out, noise)
            if norms:
                start_at_norms(copied, self.layers[index], norms, lambda: torch.equal(run().to(noise), noise))

    def _check_index(self, index: int, noise: Tensor, rest: list[Any], others: dict[str, Any]) -> None:
        """Raise ConfigError if the layer computes something else at the index of its copy, which is a cache slot."""
        slot = indexed(self.copies[index])[0].layer_idx

        def run() -> Tensor:
            out = self.layers[index].forward(noise.clone(), *rest, **others)
            return out[0] if isinstance(out, tuple) else out

        if computes_with_index(self.layers[index], slot, run):
            raise ConfigError(
                f"layer {index}, a {self._name(index)}, computes with its index (layer_idx), which is another one in "
                "its copy, a slot of the cache: neither its copy nor a merged stack would be right. Use another "
                "architecture, or give the layer a number of its own to compute with"
            )

    def _check_identity(self, index: int, out: Tensor, noise: Tensor) -> None:
        """Raise ConfigError if a stacked copy returns something else than it gets."""
        if not torch.equal(out.to(noise), noise):
            raise ConfigError(
                f"structure 'stack' starts from copies that are the identity, but the copy of layer {index}, a "
                f"{self._name(index)} with zeroed output projections, changes its input by up to "
                f"{(out - noise).abs().max():.2g}: it scales its residual, or adds to it under a name that ctrl.copies "
                "does not know. Use structure='concat'"
            )

    def _compare(self, index: int, out: Tensor, own: Any) -> None:
        """Note how far a copy in floats is from its quantised layer, relative to what the layer returns."""
        own = (own[0] if isinstance(own, tuple) else own).float()
        off = ((out.float() - own).norm() / own.norm()).item()
        if off > max(SAME, torch.finfo(out.dtype).eps):
            self.apart[index] = off


def probe(
    model: PreTrainedModel, layers: nn.ModuleList, copies: Mapping[int, nn.Module], stacked: set[int]
) -> StateShape:
    """Return the form of the hidden states of four tokens. See `Probe` for the arguments.

    Parameters of copies that no gradient reaches are frozen, see `ctrl.idle`. Raises ConfigError if the copies would
    go wrong. Nothing is checked on device meta or in a sharded model; warns if the base model itself fails.
    """
    usual = StateShape(None, model.config.get_text_config(decoder=True).hidden_size)
    if sharded(model) or any(p.is_meta for p in model.parameters()):
        return usual
    seen = Probe(layers, copies, stacked)
    try:
        _watch(model, seen)
    except ConfigError:
        raise
    except Exception as error:
        warn(
            f"{type(model).__name__} does not run on {TOKENS} tokens ({type(error).__name__}: {error}), so whether its "
            "layers can be expanded was not checked",
            stacklevel=3,
        )
        return usual
    _freeze_idle(model, seen)
    if unused := sorted(copies.keys() - seen.ran):
        raise ConfigError(f"layers={unused} do not run on text alone, so copies of them cannot train: choose others")
    if seen.apart:
        warn(
            f"copies of layers {sorted(seen.apart)} start up to {max(seen.apart.values()):.1%} off their quantised "
            "layers, so the expanded model does not start as the base: this quantisation rounds the hidden states too "
            "(bitsandbytes int8 does), and copies are in floats. expanded='lora' starts exactly, as do full copies "
            "over weights alone in few bits (nf4)",
            stacklevel=3,
        )
    return seen.shape or usual


def _freeze_idle(model: PreTrainedModel, seen: Probe) -> None:
    """Freeze what gets no gradient. A part may run for long text alone (compressed keys), so more tokens are asked."""
    if not idle(seen.copies.values(), seen.reached):
        return
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or LONG
    longer = Probe(seen.layers, seen.copies, seen.stacked, min(LONG, positions))
    with contextlib.suppress(Exception):  # then what four tokens have shown counts
        _watch(model, longer)
    for parameter in idle(seen.copies.values(), seen.reached | longer.reached):
        parameter.requires_grad_(False)


def _watch(model: PreTrainedModel, seen: Probe) -> None:
    hooks = list(seen.hooks())
    try:
        _run(model, seen.tokens)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _run(model: PreTrainedModel, tokens: int) -> None:
    """Run the decoder once, then restore modes and attention. Eager attention runs on any device and dtype."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    config = model.config.get_text_config(decoder=True)
    training = [module for module in decoder.modules() if module.training]
    attention, config._attn_implementation = config._attn_implementation, "eager"
    try:
        embeddings: Any = model.get_input_embeddings()
        rows = embeddings.weight.shape[0]
        ids = torch.arange(tokens, device=next(model.parameters()).device)[None] % rows
        with as_in_training(decoder.eval()):
            decoder(input_ids=ids, use_cache=True)
    finally:
        config._attn_implementation = attention
        for module in training:
            module.training = True


def _check_cache(name: str, values: Mapping[Any, Any]) -> None:
    """Raise ConfigError if the layer gets a cache that is none of transformers' own: copies could get no slot in it."""
    for key, value in values.items():
        known = isinstance(value, Cache) and type(value).__module__ == cache_utils.__name__
        if (key in CACHE_NAMES or isinstance(value, Cache)) and value is not None and not known:
            raise ConfigError(
                f"{name} uses a cache of its own ({type(value).__name__}), in which copies have no place, so it cannot "
                "be expanded. Use another architecture"
            )


def _reads(layer: nn.Module, value: Any, hidden: Tensor, rest: list[Any], others: dict[str, Any]) -> bool:
    """Return whether the layer's output depends on one of its arguments."""
    fewer = [None if one is value else one for one in rest]
    without = {name: None if one is value else one for name, one in others.items()}
    try:
        outs = [layer.forward(hidden, *rest, **others), layer.forward(hidden, *fewer, **without)]
    except Exception:
        return True  # it does not run without
    one, two = (out[0] if isinstance(out, tuple) else out for out in outs)
    return not torch.equal(one, two)


def _no_cache(value: Any) -> Any:
    return None if isinstance(value, Cache) else value
