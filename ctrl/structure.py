"""Find the decoder layers of a model and choose which ones to expand."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedConfig, PreTrainedModel

from ctrl.config import ControlConfig
from ctrl.errors import ConfigError
from ctrl.indices import indexed

DECODER_COUNT = "decoder_layers"  # in configs of decoders out of an encoder-decoder, whose other count is the encoder's


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Find the stack of decoder layers by its structure. Raises ConfigError with the reason if there is none."""
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    if any(getattr(one, "is_encoder_decoder", False) for one in (model.config, config)):  # T5Gemma: in the first alone
        raise ConfigError(f"{name} is an encoder-decoder: expand needs a decoder-only causal language model")
    count = getattr(config, DECODER_COUNT, None) or getattr(config, "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    stacks = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    stacks = [m for m in stacks if all(indexed(layer) for layer in m)]
    if len(stacks) != 1:
        raise ConfigError(
            f"{name} has {len(stacks)} stacks of {count} decoder layers that each own a cache slot (an attention with "
            "an integer layer_idx), but must have exactly one: use another architecture"
        )
    _refuse_index_arithmetic(model, stacks[0])
    return stacks[0]


def check_layers(layers: nn.ModuleList, indices: Sequence[int]) -> None:
    """Raise ConfigError if one of these layers cannot have a copy next to it."""
    owners: dict[int, list[int]] = {}
    for index, layer in enumerate(layers):
        for parameter in layer.parameters():
            owners.setdefault(id(parameter), []).append(index)
    for index in indices:
        name, names = type(layers[index]).__name__, list(inspect.signature(type(layers[index]).forward).parameters)[1:]
        if "layer_idx" in names:
            raise ConfigError(
                f"{name} gets its cache slot as an argument (layer_idx), so its copy would write into the slot of "
                f"layer {index}: it cannot be expanded. Use another architecture"
            )
        if shared := next((o for p in layers[index].parameters() if len(o := owners[id(p)]) > 1), None):
            raise ConfigError(
                f"layers {shared} of {name} share parameters, so a copy of layer {index} is no copy of it alone: "
                "choose layers that share nothing, or use another architecture"
            )
        if "hidden_states" in names[1:]:
            raise ConfigError(
                f"{name} reads {names[0]} before the hidden state (a reversible layer): it cannot be expanded. Use "
                "another architecture"
            )


def place(layers: int | Sequence[int], total: int) -> list[int]:
    """List the indices of the layers to expand, sorted.

    A count n gives floor(j L / n) - 1 for j = 1..n, L = total; if n divides L these are the layers l with (l + 1)
    divisible by L/n. In a list negative indices count from the end (-1 is the last). Raises ConfigError if there is no
    such layer, or if two indices mean the same one.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= total:
            raise ConfigError(f"layers={layers}: the model has {total} layers, give a count in 1..{total}")
        return [j * total // layers - 1 for j in range(1, layers + 1)]
    beyond = [i for i in layers if not -total <= i < total]
    if beyond:
        raise ConfigError(f"layers={list(layers)}: the model has layers 0..{total - 1}, but not {beyond}")
    found = sorted(i % total for i in layers)
    if len(set(found)) < len(found):
        raise ConfigError(f"layers={list(layers)}: of {total} layers two of these are the same; give each once")
    return found


def branch_kinds(config: ControlConfig, count: int) -> list[str]:
    """List `concat` or `stack` for each expanded layer in order; hybrid alternates stack, concat, ..."""
    if config.structure == "hybrid":
        return ["stack" if j % 2 == 0 else "concat" for j in range(count)]
    return [config.structure] * count


def select_layers(config: PreTrainedConfig, indices: Sequence[int]) -> None:
    """Make a text config describe only these of its layers, in this order; an index may occur twice.

    Changes the layer count and every list with one value per layer (layer_types, no_rope_layers, ...).
    """
    count = getattr(config, DECODER_COUNT, None) or config.num_hidden_layers
    other = ("architectures", "eos_token_id", "keys_to_ignore_at_inference")  # lists, but not one value per layer
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count and name not in other:
            setattr(config, name, [value[index] for index in indices])
    config.num_hidden_layers = len(indices)
    if hasattr(config, DECODER_COUNT):
        setattr(config, DECODER_COUNT, len(indices))


def head_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters on top of the decoder that are no language model's: the `score` of a reward model or
    classifier. They start at random on a pretrained decoder, so they train with the copies. A head that predicts
    tokens is a language model's, also of a masked one (BERT's)."""
    decoder = model.base_model
    if model.can_generate() or decoder is model or model.get_output_embeddings() is not None:
        return {}
    below = {id(parameter) for parameter in decoder.parameters()}
    named = model.named_parameters()
    return {name: p for name, p in named if id(p) not in below and p.is_floating_point()}


def dropout_in(layers: Iterable[nn.Module]) -> str:
    """Name the first dropout or jitter (of a router) inside of the layers, with its rate; empty if there is none."""
    for layer in layers:
        for name, module in layer.named_modules():
            rates = {f"{name}.{key}": rate for key, rate in vars(module).items() if "drop" in key or "jitter" in key}
            rates |= {name: module.p} if isinstance(module, nn.Dropout) else {}
            for place, rate in rates.items():
                if isinstance(rate, float) and rate > 0:
                    return f"{place.strip('.')}={rate:g}"
    return ""


def own_head(model: Any) -> nn.Parameter | None:
    """Return the weight of the head if it is another tensor than the embeddings, and this process holds it.

    They may have been one in the base: PEFT's modules_to_save makes two of them, and so does an assignment.
    """
    rows, head = _rows_and_head(model)
    apart = rows is not None and head is not None and rows.weight is not head.weight and not rows.weight.is_meta
    return head.weight if apart and not type(head).__module__.startswith("peft.") else None


def give_own_head(model: Any) -> None:
    """Make two tensors of embeddings and head if they are one, and let the config say so, which servers believe."""
    rows, head = _rows_and_head(model)
    if head is not None and rows is not None and rows.weight is head.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config(decoder=True)):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def says_another_head(model: Any) -> bool:
    """Whether the config says that embeddings and head are one tensor, but they have other values."""
    configs = (model.config, model.config.get_text_config(decoder=True))
    tied = any(getattr(config, "tie_word_embeddings", False) for config in configs)
    rows, head = model.get_input_embeddings(), own_head(model) if tied else None
    return head is not None and not torch.equal(rows.weight, head.to(rows.weight.device))


def _rows_and_head(model: Any) -> list[Any]:
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    return [part if isinstance(getattr(part, "weight", None), nn.Parameter) else None for part in parts]


def is_attention(module: nn.Module) -> bool:
    """Recognise an attention module by its structure: it has child modules and names its cache slot."""
    return indexed(module) == [module] and bool(list(module.children()))


def _refuse_index_arithmetic(model: PreTrainedModel, layers: nn.ModuleList) -> None:
    """Raise ConfigError for models that compute with layer_idx: in a copy it is a cache slot after the last layer."""
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        raise ConfigError(
            "scale_attn_by_inverse_layer_idx=True: attention depends on the layer's index; set it to False"
        )
    for module in layers.modules():
        if getattr(module, "is_kv_shared_layer", False):
            raise ConfigError(
                f"{type(module).__name__} reads another layer's keys and values, so it cannot be expanded"
            )


def refuse_computed_weights(modules: Iterable[nn.Module], use: str) -> None:
    """Raise ConfigError for a weight that is computed from others before each pass. use: what cannot copy it.

    Pruning, weight_norm, spectral_norm and parametrizations do that. A copy of it would not change with what trains,
    and a mix of its parts is no mix of the weights.
    """
    for module in modules:
        for name, part in module.named_modules():
            hooks = part._forward_pre_hooks.values()
            if is_parametrized(part) or any(type(hook).__module__.startswith("torch.nn.utils.") for hook in hooks):
                raise ConfigError(
                    f"{use} cannot copy {type(module).__name__}'s {name}, whose weight is computed in each pass "
                    "(pruning, weight_norm, a parametrization): make it a plain weight first, with "
                    "torch.nn.utils.prune.remove, remove_weight_norm or parametrize.remove_parametrizations"
                )
