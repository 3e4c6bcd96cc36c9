"""Make a plain model of the base that shares the expanded model's tensors."""

from __future__ import annotations

import weakref
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ctrl.changes import warn_if_changed
from ctrl.checkpoint import added_names
from ctrl.control_model import bare_expanded
from ctrl.errors import ConfigError, warn
from ctrl.expansion import deep_copy, take_off
from ctrl.fingerprint import fingerprint, part_prints, same_base
from ctrl.layer import ADDED, expanded_layers
from ctrl.quantised import run_as_in_training
from ctrl.sharded import sharded
from ctrl.sums import FLOATS, is_held

NOT_AS_NOW = (
    "the copies of this model have been trained, and the reference model is the base, without them: it is not the "
    "model as it is now. If DPO, KTO or GRPO are to be compared with that one (after SFT, say), pass ref_model="
    "copy.deepcopy(model), or set trainer.teacher_model to it (SDFT, SDPO)"
)


ANOTHER = (
    "this trainer's reference model has other weights than the base of the copies, which have not been trained yet: "
    "training does not start at the reference. TRL loads it by the name of the base, under which a model that was "
    "merged or changed in memory is not found: pass ref_model=ctrl.reference(model), or set trainer.teacher_model to it"
)


def reference(model: nn.Module) -> PreTrainedModel:
    """Return the base as a model of its own that shares every frozen tensor: a reference for DPO or KTO at no memory.

        trainer = DPOTrainer(model, ref_model=ctrl.reference(model), ...)

    Move both to a device (or let the trainer do it): the weights stay one, and another dtype of one is that of both.
    Weights of the base that you unfroze are copied as they are now; those that you unfreeze later are shared, with a
    warning. Warns of copies that have been trained: after SFT the model before DPO is not the base, but
    copy.deepcopy(model). In eval mode; `ctrl.pretrained` needs no second model, but trainers ask for one. TRL's
    GRPOTrainer takes none, it loads its own by the base's name. Raises ConfigError for a sharded model, whose shards
    FSDP gathers for one model only: make the reference before, it is then sharded as a model of its own.
    """
    expanded: Any = bare_expanded(model)
    if sharded(expanded):
        raise ConfigError("the model is sharded: call ctrl.reference before fully_shard, and shard both models")
    warn_if_changed(expanded, "ctrl.reference")
    if has_trained(expanded):
        warn(NOT_AS_NOW, stacklevel=2)
    added = set(added_names(expanded))
    own = {id(p) for name, p in expanded.named_parameters() if p.requires_grad and name not in added}
    shared = {id(t): t for t in chain(expanded.parameters(), expanded.buffers()) if id(t) not in own}
    plain: Any = deep_copy(expanded, shared)
    take_off(plain)
    for parameter in plain.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    run_as_in_training(plain)
    control = expanded.control
    control.references = [*(made for made in control.references if made()), weakref.ref(plain)]
    control.looked = False  # the next training pass looks whether a shared weight trains
    return plain.eval()


def warn_of_reference(model: Any, made: Any) -> None:
    """Warn if a trainer has loaded its reference (by name), and it is not what the model is now."""
    control = model.control
    own = any(reference() is made for reference in control.references)  # the warning was given
    if own or not isinstance(made, PreTrainedModel) or expanded_layers(made):
        return
    base = {"fingerprint": control.fingerprint, "dtype": control.fingerprint_dtype, "part_prints": control.part_prints}
    here = {"fingerprint": fingerprint(made), "dtype": str(made.dtype), "part_prints": part_prints(made)}
    if has_trained(model):
        if here["fingerprint"] == base["fingerprint"]:
            warn(NOT_AS_NOW, stacklevel=3)
    elif same_base(base, here) is False:
        warn(ANOTHER, stacklevel=3)


def has_trained(model: nn.Module) -> bool:
    """Return whether a copy has moved: a new one has the values of its layer, or 0 if it is stacked or low-rank."""
    for layer in expanded_layers(model):
        start = {name: p for name, p in layer.named_parameters() if not name.startswith(ADDED)}
        for name, p in layer.expanded.named_parameters():
            before = torch.zeros_like(p) if "lora_B" in name else start.get(name, p)
            plain = before.shape == p.shape and is_held(p) and is_held(before) and type(before.data) is torch.Tensor
            if not plain or before.dtype not in FLOATS:  # offloaded, sharded or quantised
                continue
            constant = p.numel() and bool((p == p.flatten()[0]).all())  # 0, or -1 of a norm: see ctrl.post_norms
            if before is not p and not constant and not torch.equal(before.to(p.dtype), p):
                return True
    return False
