"""Recognise a base model by weights and config, so that copies are not loaded onto another one of the same shapes."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ctrl.control import Control
from ctrl.layer import ADDED
from ctrl.quantised import has_quantised
from ctrl.structure import head_parameters, own_head
from ctrl.sums import FLOATS, bits, exact_sums, is_held

SAMPLE = 64  # values of each parameter, at most
HALF = (torch.bfloat16, torch.float16)
EXACT = ("torch.float64", "torch.float32", "torch.bfloat16")  # rounded to bf16, these give the same values

COMPUTES = (  # fields of a config that many families have, some by another name
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "activation_function"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "sliding_window"),
    *("attn_logit_softcapping", "query_pre_attn_scalar", "residual_multiplier", "attention_multiplier"),
)
LENGTH_ROPES = ("dynamic", "longrope")  # positions that depend on `max_position_embeddings`
# fields that do not change what the same weights compute: training, start values, outputs, sizes that `base_facts` has
IDLE = re.compile(
    r"_.*|.*(dropout|pdrop|layerdrop|jitter|token_id|initializer|loss|aux_|kernels).*|init_.*|.*_init|summary_.*"
    r"|classifier_.*|output_(hidden_states|attentions|router_logits|scores)|return_dict|use_cache|keys_to_ignore.*"
    r"|architectures|transformers_version|auto_map|dtype|torch_dtype|model_type|id2label|label2id|problem_type"
    r"|quantization_config|tie_word_embeddings|vocab_size|hidden_size|num_hidden_layers|max_position_embeddings"
    r"|n_positions|n_ctx|model_max_length|pretraining_tp|chunk_size_feed_forward|num_logits_to_keep|n_embd|n_layer"
)


def fingerprint(model: Any) -> str | None:
    """Hash a sample of every parameter of the base, rounded to bf16.

    None if this process does not hold all weights, or if they are quantised.

    A base that is loaded in bf16 has the fingerprint that it has in fp32. Costs one small copy from the device.
    """
    return _digest(samples_of(model))


def rest_print(samples: dict[str, Tensor] | None, saved: Collection[str]) -> str | None:
    """Hash the samples of a base without the tensors that are saved whole, of which each base may have its own.

    New rows of embeddings are drawn anew in each process. None if no sample is left out.
    """
    rest = None if samples is None else {name: values for name, values in samples.items() if name not in saved}
    return _digest(rest) if rest and samples is not None and len(rest) < len(samples) else None


@torch.no_grad()
def part_prints(model: Any) -> dict[str, str]:
    """Hash samples of the base's norms and of its embeddings, which most kinds of quantisation leave in floats.

    They show that a quantised base is not another one of the same kind, or one in floats. Parts that this process does
    not hold whole are left out.
    """
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    added = {id(p) for n, p in model.named_parameters() if any(f".{part}" in n for part in ADDED)}
    added |= {id(p) for p in head_parameters(model).values()}
    parts = {
        "norms": [p for norm in norms for p in norm.parameters(recurse=False) if id(p) not in added],
        "embeddings": list(model.get_input_embeddings().parameters(recurse=False)),
    }
    prints = {}
    for name, found in parts.items():
        if found and all(type(p) is nn.Parameter and is_held(p) and p.dtype in FLOATS for p in found):
            exact = all(str(p.dtype) in EXACT for p in found)
            samples = {str(i): _some(p).cpu() for i, p in enumerate(found)}
            prints[name if exact else f"{name} in {found[0].dtype}"] = str(_digest(samples))
    return prints


def remember_base(control: Control, model: Any) -> None:
    """Note the base: what it computes, the fingerprint of its weights, and the samples that `changed` compares."""
    control.computes = computes(model.config)
    control.samples, control.sums = samples_of(model), exact_sums(model)
    control.fingerprint, control.fingerprint_dtype = _digest(control.samples), str(model.dtype)
    control.part_prints = part_prints(model)


def changed(model: Any, whole: bool = True) -> list[Tensor]:
    """List the base's parameters and saved buffers that are no longer what they were when it was expanded.

    Merged adapters do that, or parts that trained and were frozen again. whole=False: as far as a sample shows, which
    costs no time; of embeddings, the head and buffers all values count. What another type has rounded is no change.
    Empty for a plain model.
    """
    control = getattr(model, "control", None)
    before = control.samples if isinstance(control, Control) else None
    now = samples_of(model) if before else None
    if not isinstance(control, Control) or not before or not now:
        return []
    moved = {name for name, values in now.items() if name in before and _moved(before[name], values)}
    for name, total in exact_sums(model, whole).items():
        then = control.sums.get(name, total)
        sampled = name in before and name in now
        unrounded = torch.equal(bits(before[name]), bits(now[name])) if sampled else then[0] == total[0]
        if unrounded and then != total:
            moved.add(name)
    moved |= {name for name, p in model.named_parameters() if name not in before and p is own_head(model)}
    return [tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name in moved]


def _moved(before: Tensor, now: Tensor) -> bool:
    """Whether a sample has changed by more than the rounding of another type: of the one that it has now, or had."""
    if now.dtype != before.dtype:
        return str(now.dtype) in EXACT and not torch.equal(before.bfloat16(), now.bfloat16())
    same = torch.equal(bits(before), bits(now))
    return not same and not any(torch.equal(before.to(half).to(now.dtype), now) for half in HALF)


def warn_if_changed(model: Any, use: str, whole: bool = True) -> None:
    """Warn once if frozen weights of the base are others than when it was expanded. use: what takes them for the base.

    Merged adapters and direct writes do that, or parts that trained and were frozen again. whole: as in `changed`.
    """
    moved = {id(p) for p in changed(model, whole) if not p.requires_grad}
    if not moved or model.control.told_of_base:
        return
    model.control.told_of_base = True
    names = [n for n, tensor in (*model.named_parameters(), *model.named_buffers()) if id(tensor) in moved]
    warnings.warn(
        f"{use} is not the base that was expanded: {len(names)} frozen parameters have changed since (first: "
        f"{names[0]}), by merged adapters, a training of theirs or a write. Load the base anew to compare with it",
        stacklevel=4,
    )


@torch.no_grad()
def samples_of(model: Any) -> dict[str, Tensor] | None:
    """Take up to SAMPLE values of every parameter of the base, in host memory.

    A head that trains with the copies is no part of it: it is saved with them, and starts at random elsewhere.
    """
    trained = head_parameters(model)
    named = {name: p for name, p in model.named_parameters() if name not in trained}
    found = {name: p for name, p in named.items() if not any(f".{part}" in name for part in ADDED)}
    if has_quantised(model) or not all(map(is_held, found.values())):
        return None
    samples = {name: _some(p).contiguous() for name, p in found.items()}
    first = next(iter(samples.values())).device
    parts = torch.cat([bits(sample).to(first) for sample in samples.values()]).cpu()  # one copy from the device
    sizes = [sample.nbytes for sample in samples.values()]
    pairs = zip(samples.items(), parts.split(sizes), strict=True)
    return {name: part.clone().view(sample.dtype) for (name, sample), part in pairs}


def _digest(samples: dict[str, Tensor] | None) -> str | None:
    if samples is None:
        return None
    values = torch.cat([values.bfloat16().view(torch.int16) for values in samples.values()])  # autocast joins no bf16
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def computes(config: Any) -> dict[str, Any]:
    """Return the fields of a model's config that change what the same weights compute: heads, norms, positions, ...

    These are all but `IDLE`, as JSON has them. Those of COMPUTES have the same name in every family.
    """
    config = config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None)
    theta = rope.get("rope_theta") if isinstance(rope, dict) else None
    values, other_names = config.to_dict(), config.attribute_map
    # not by getattr: a config whose layers differ raises for the fields in which they do
    found = {name: values.get(other_names.get(name, name)) for name in COMPUTES}
    found["rope_theta"] = theta if found["rope_theta"] is None else found["rope_theta"]
    if any(kind in LENGTH_ROPES for kind in _values(rope, "rope_type")):
        found["max_position_embeddings"] = config.max_position_embeddings
    known = {name: value for name, value in found.items() if isinstance(value, int | float | str)}
    more = {name: value for name, value in values.items() if not IDLE.fullmatch(name)}
    plain: dict[str, Any] = json.loads(json.dumps(known | more, default=str))
    return plain


def _values(value: Any, key: str) -> list[Any]:
    """List the values of a key in a dict and in those inside it: layers of several kinds may have one each."""
    if not isinstance(value, dict):
        return []
    return [*([value[key]] if key in value else []), *(found for one in value.values() for found in _values(one, key))]


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Name the facts that both have and in which they differ."""
    wrong = [name for name in here if name in there and _differ(there[name], here[name])]
    return ", ".join(f"{name} is {there[name]} there, {here[name]} here" for name in wrong)


def _differ(there: Any, here: Any) -> bool:
    """Compare two values; of dicts what both have, since versions of transformers add keys."""
    if isinstance(there, dict) and isinstance(here, dict):
        return any(_differ(there[key], here[key]) for key in there.keys() & here.keys())
    return bool(there != here)


def same_base(saved: dict[str, Any], here: dict[str, Any]) -> bool | None:
    """Compare the fingerprints in two `base_facts`, or those of the rest (see `rest_print`) if both have one.

    None if one is missing, or the dtypes round in different ways. If one of the whole base is missing, those of parts
    can only show that the bases differ.
    """
    prints = [facts.get("fingerprint") for facts in (saved, here)]
    dtypes = [facts.get("fingerprint_dtype") or facts.get("dtype") for facts in (saved, here)]
    exact = dtypes[0] == dtypes[1] or all(dtype in EXACT for dtype in dtypes)
    if all(prints) and exact:
        rests = [facts.get("rest") for facts in (saved, here)]
        return prints[0] == prints[1] or (rests[0] is not None and rests[0] == rests[1])
    there, here_parts = (facts.get("part_prints") or {} for facts in (saved, here))
    return False if any(there[part] != here_parts[part] for part in there.keys() & here_parts.keys()) else None


def holds_more(model: Any, dtype: str) -> bool:
    """Whether the base has values that this type (`torch.bfloat16`) rounds, as far as a sample shows."""
    narrow: Any = getattr(torch, dtype.removeprefix("torch."))
    values = (_some(p) for n, p in model.named_parameters() if not any(f".{part}" in n for part in ADDED))
    return any(not torch.equal(v.to(narrow).to(v.dtype), v) for v in values if v.is_floating_point() and not v.is_meta)


def _some(parameter: Tensor) -> Tensor:
    flat = parameter.detach().flatten()
    return flat[:: -(-len(flat) // SAMPLE) or 1]
