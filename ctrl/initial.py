"""Compare the model that a trainer takes for the one before training with the one that trains.

TRL loads it by the name of the base: DPO's and GRPO's reference, SDFT's teacher. Then it has no copies.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ctrl.fingerprint import fingerprint, part_prints, same_base
from ctrl.layer import ADDED, expanded_layers
from ctrl.sums import FLOATS, is_held

NOT_AS_NOW = (
    "the copies of this model have been trained, and the reference model is the base, without them: it is not the "
    "model as it is now. If DPO, KTO or GRPO are to be compared with that one (after SFT, say), pass ref_model="
    "copy.deepcopy(model), or set trainer.ref_model (GRPO) or trainer.teacher_model (SDFT, SDPO) to it"
)


ANOTHER = (
    "this trainer's reference model has other weights than the base of the copies, which have not been trained yet: "
    "training does not start at the reference. TRL loads it by the name of the base, under which a model that was "
    "merged or changed in memory is not found: pass ref_model=ctrl.reference(model), or set trainer.teacher_model to it"
)


def warn_of_reference(model: Any, trainer: Any, stacklevel: int) -> None:
    """Warn if a trainer that begins has loaded its reference (by name), and it is not what the model is now."""
    control, args = model.control, getattr(trainer, "args", None)
    initial = getattr(args, "teacher_model_kind", "") == "base"  # TRL's SDFT and SDPO: the student as it began
    made = getattr(trainer, "teacher_model" if initial else "ref_model", None)
    own = any(one() is made for one in (*control.references, *control.starts))  # warned of, or compared before
    begun = getattr(getattr(trainer, "state", None), "global_step", 0)  # the copies have trained since, as they should
    if own or begun or not isinstance(made, PreTrainedModel) or expanded_layers(made):
        return
    base = {"fingerprint": control.fingerprint, "dtype": control.fingerprint_dtype, "part_prints": control.part_prints}
    here = {"fingerprint": fingerprint(made), "dtype": str(made.dtype), "part_prints": part_prints(made)}
    if has_trained(model):
        if here["fingerprint"] == base["fingerprint"]:
            control.say(NOT_AS_NOW, stacklevel=stacklevel + 1)
        return
    control.starts.append(weakref.ref(made))  # it stays the model before, also if the trainer is called again
    if same_base(base, here) is False:
        control.say(ANOTHER, stacklevel=stacklevel + 1)


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
