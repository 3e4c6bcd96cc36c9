"""Note a base when it is expanded, and find later what of it is no longer as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctrl.computes import computes
from ctrl.control import Control
from ctrl.errors import warn
from ctrl.fingerprint import EXACT, digest, packed_samples, part_prints, samples_of
from ctrl.precision import HALF
from ctrl.quantised import has_quantised
from ctrl.structure import own_head
from ctrl.sums import Sums, bits, exact_sums


def remember_base(control: Control, model: Any) -> None:
    """Note the base: what it computes, the fingerprint of its weights, and the samples that `changed` compares."""
    control.computes = computes(model.config)
    control.samples, control.sums = samples_of(model), exact_sums(model)
    control.fingerprint = None if has_quantised(model) else digest(control.samples)
    control.fingerprint_dtype, control.part_prints = str(model.dtype), part_prints(model)
    control.packed = packed_samples(model)


def changed(model: Any, whole: bool = True, sums: Sums | None = None) -> list[Tensor]:
    """List the base's parameters and saved buffers that are no longer what they were when it was expanded.

    Merged adapters do that, or parts that trained and were frozen again. whole=False: as far as a sample shows, which
    costs no time; of embeddings, the head and buffers all values count. What another type has rounded is no change.
    sums: the `exact_sums` of the model, if they are known. Empty for a plain model.
    """
    control = getattr(model, "control", None)
    before = control.samples if isinstance(control, Control) else None
    now = {_own_name(name): values for name, values in (samples_of(model) or {}).items()} if before else None
    if not isinstance(control, Control) or not before or not now:
        return []
    moved = {name for name, values in now.items() if name in before and _moved(before[name], values)}
    for given, total in (exact_sums(model, whole) if sums is None else sums).items():
        name = _own_name(given)
        then = control.sums.get(name, total)
        sampled = name in before and name in now
        unrounded = torch.equal(bits(before[name]), bits(now[name])) if sampled else then[0] == total[0]
        if unrounded and then != total:
            moved.add(name)
    head = own_head(model)
    named = [(_own_name(name), tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())]
    moved |= {name for name, tensor in named if tensor is head and name not in before}
    return [tensor for name, tensor in named if name in moved]


def _own_name(name: str) -> str:
    """Return the name that a tensor has without PEFT's adapters on top, and without torch.compile."""
    return name.replace(".base_layer", "").replace(".original_module", "").replace("._orig_mod", "")


def repacked(model: Any) -> list[str]:
    """Name the quantised weights of the base that are no longer what they were when it was expanded, as far as a sample
    shows: adapters were merged into them."""
    before = model.control.packed
    now = packed_samples(model) if before else {}
    moved = [name for name in before.keys() & now.keys() if not torch.equal(before[name], now[name])]
    return sorted({name.rpartition(".")[0] for name in moved})


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
    if model.control.told_of_base:
        return
    moved = {id(p) for p in changed(model, whole) if not p.requires_grad}
    names = [n for n, tensor in (*model.named_parameters(), *model.named_buffers()) if id(tensor) in moved]
    if not (names := names + repacked(model)):
        return
    model.control.told_of_base = True
    warn(
        f"{use} is not the base that was expanded: {len(names)} frozen parameters have changed since (first: "
        f"{names[0]}), by merged adapters, a training of theirs or a write. Load the base anew to compare with it",
        stacklevel=4,
    )
