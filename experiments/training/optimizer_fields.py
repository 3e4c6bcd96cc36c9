"""Find fields of `training.arguments` that the chosen optimizer does not read: transformers says nothing of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

DEFAULT = "adamw_torch_fused"
WITHOUT_BETAS = ("sgd", "adagrad", "adafactor", "rmsprop", "galore", "grokadamw")  # parts of an optimizer's name
WITHOUT_EPSILON = (*WITHOUT_BETAS, "lion")
LOW_RANK = ("galore", "apollo")
OPTIM_ARGS: dict[
    str, tuple[str, ...] | None
] = {  # part of an optimizer's name -> what it reads of optim_args; all others read nothing
    "rmsprop_": None,  # of bitsandbytes: whatever is given, and it refuses what it does not know
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "ademamix": ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"),
    "galore": ("rank", "update_proj_gap", "scale", "proj_type"),
    "apollo": ("rank", "proj", "scale_type", "update_proj_gap", "scale", "proj_type"),
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    "stable_adamw": ("decouple_lr", "max_lr", "kahan_sum"),
    "torch_4bit": ("block_size", "bf16_stochastic_round"),
    "torch_8bit": ("block_size", "bf16_stochastic_round"),
    "anyprecision": ("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype"),
}


def unread(given: Mapping[str, Any]) -> Iterator[str]:
    """Describe the arguments without effect, one line each."""
    optim = str(given.get("optim", DEFAULT))

    def is_of(parts: tuple[str, ...]) -> bool:
        return any(part in optim for part in parts)

    betas = [name for name in ("adam_beta1", "adam_beta2") if name in given] if is_of(WITHOUT_BETAS) else []
    epsilon = ["adam_epsilon"] if "adam_epsilon" in given and is_of(WITHOUT_EPSILON) else []
    for name in (*betas, *epsilon):
        yield f"{name} is not read by optim {optim!r}: leave it out, or choose one of the family of Adam"
    if given.get("optim_target_modules") is not None and not is_of(LOW_RANK):
        yield f"optim_target_modules is not read by optim {optim!r}: it is of GaLore and APOLLO, such as galore_adamw"
    if given.get("dataloader_multiprocessing_context") and not given.get("dataloader_num_workers"):
        yield "dataloader_multiprocessing_context has no effect without dataloader_num_workers of 1 or more"
    known = next((names for part, names in OPTIM_ARGS.items() if part in optim), ())
    if known is None:
        return
    for word in (pair.partition("=")[0].strip() for pair in str(given.get("optim_args") or "").split(",")):
        if word and word not in known:
            reads = f"it reads {', '.join(known)}" if known else "it reads none"
            way = "it is training.weight_decay" if word == "weight_decay" else reads
            yield f"optim_args: {word} is not read by optim {optim!r}: {way}"
