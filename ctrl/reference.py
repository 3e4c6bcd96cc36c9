"""Make a plain model of the base that shares the expanded model's tensors."""

from __future__ import annotations

import weakref
from itertools import chain
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ctrl.changes import warn_if_changed
from ctrl.checkpoint import added_names
from ctrl.control_model import bare_expanded
from ctrl.errors import ConfigError, warn
from ctrl.expansion import deep_copy, take_off
from ctrl.initial import NOT_AS_NOW, has_trained
from ctrl.quantised import run_as_in_training
from ctrl.sharded import sharded


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
