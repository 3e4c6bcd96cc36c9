"""Compare what the configs of two models make of the same weights: heads, norms, positions, ..."""

from __future__ import annotations

import json
import re
from typing import Any

COMPUTES = (  # fields of a config that many families have, some by another name
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "activation_function"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "sliding_window"),
    *("attn_logit_softcapping", "query_pre_attn_scalar", "residual_multiplier", "attention_multiplier"),
)
LENGTH_ROPES = ("dynamic", "longrope")  # positions that depend on `max_position_embeddings`
TRAINING = r".*(dropout|pdrop|layerdrop|jitter|loss|aux_).*"  # fields that a model reads in training alone
# fields that do not change what the same weights compute: training, start values, outputs, sizes that `base_facts` has
IDLE = re.compile(
    rf"_.*|{TRAINING}|.*(token_id|initializer|kernels).*|init_.*|.*_init|summary_.*"
    r"|classifier_.*|output_(hidden_states|attentions|router_logits|scores)|return_dict|use_cache|keys_to_ignore.*"
    r"|architectures|transformers_version|auto_map|dtype|torch_dtype|model_type|id2label|label2id|problem_type"
    r"|quantization_config|tie_word_embeddings|vocab_size|hidden_size|num_hidden_layers|max_position_embeddings"
    r"|n_positions|n_ctx|model_max_length|pretraining_tp|chunk_size_feed_forward|num_logits_to_keep|n_embd|n_layer"
)


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


def trains(config: Any) -> dict[str, Any]:
    """Return the fields of a model's config that change how the same weights train: dropout, the router's loss, ..."""
    values = config.get_text_config(decoder=True).to_dict()
    found = {name: value for name, value in values.items() if re.fullmatch(TRAINING, name) and not name.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
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
