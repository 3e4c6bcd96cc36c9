"""Exchange the expansion of a base in place, or remove it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ctrl.changes import changed, repacked, warn_if_changed
from ctrl.computes import computes, differences
from ctrl.control import Control
from ctrl.control_model import ControlModel, bare_expanded
from ctrl.errors import ConfigError, warn
from ctrl.expansion import Expansion, put_on, take_off
from ctrl.facts import base_as_it_runs
from ctrl.fingerprint import fingerprint, packed_print, packed_samples, part_prints, same_base
from ctrl.generation import agree
from ctrl.mark import other_buffers, other_kinds, other_type
from ctrl.offloaded import is_offloaded
from ctrl.precision import HALF, HalfComputing
from ctrl.saving import load
from ctrl.sharded import sharded
from ctrl.structure import decoder_layers
from ctrl.sums import Sums, exact_sums, other_rows


def unload(model: nn.Module) -> PreTrainedModel:
    """Remove the copies and return the base, the same object and bit for bit; all its weights train again.

    Weights of the base that you unfroze and trained stay as trained, and so do settings of generation that you or a
    trainer set; those that `ctrl.load` brought go. What was not saved is lost: `swap` keeps it.
    Raises ConfigError for a sharded model, and inside `ctrl.diagnostics` or `ctrl.collect_divergence`.
    """
    plain: Any = _changeable(model)
    warn_if_changed(plain, "the model that ctrl.unload returns")
    plain.control.warn_of_references("ctrl.unload")
    take_off(plain)
    for parameter in plain.parameters():
        if parameter.is_floating_point():  # quantised weights cannot train
            parameter.requires_grad_(True)
    return plain


def swap(
    model: nn.Module, other: Expansion | str | os.PathLike[str], allow_other_base: bool = False
) -> Expansion | None:
    """Put another expansion onto the base in place, and return the one that it had (None for a plain model).

        math = ctrl.swap(model, "code-folder")   # the copies of the folder run; the former ones wait in memory
        code = ctrl.swap(model, math)            # and back, without reading a file

    other: what an earlier `swap` returned, or a folder or an address as in `ctrl.load`. allow_other_base: as there.
    Optimizers and trainers hold the former weights: make new ones. An open `ctrl.pretrained` or `ctrl.at_alpha` is of
    the former expansion: the new one runs, with a warning. If it fails, the model keeps what it had. Raises
    ConfigError for a sharded or offloaded model, inside `ctrl.diagnostics` or `ctrl.collect_divergence`, for the
    expansion of another base, and for one that another model has; CheckpointError as `load` does.
    """
    base: Any = _changeable(model) if any(isinstance(m, ControlModel) for m in model.modules()) else model
    sums = {} if allow_other_base else exact_sums(base)  # once: they read the whole base
    if not allow_other_base:
        _refuse_changed(base, sums)
    former = take_off(base) if isinstance(base, ControlModel) else None
    try:
        if isinstance(other, Expansion):
            _check_base(base, other, sums, allow_other_base)
            put_on(base, other)
        else:
            load(base, other, allow_other_base)
    except Exception:
        if former is not None:
            put_on(base, former)
        raise
    if former is not None:
        _warn_of_blocks(former.control)
    return former


def _refuse_changed(base: Any, sums: Sums) -> None:
    """Raise ConfigError if weights of the base are others than when it was expanded: the other expansion needs those.

    The fingerprint, a sample, would miss a few rows of the embeddings.
    """
    moved = set(map(id, changed(base, sums=sums)))
    names = [name for name, tensor in base.state_dict(keep_vars=True).items() if id(tensor) in moved]
    if names := names + (repacked(base) if isinstance(base, ControlModel) else []):
        raise ConfigError(
            f"{len(names)} weights of the base have changed since it was expanded (first: {names[0]}), so the other "
            "expansion would run on another base: ctrl.save this one, and ctrl.load the other onto the base anew "
            "(allow_other_base=True puts it onto the weights as they are)"
        )


def _warn_of_blocks(former: Control) -> None:
    if block := former.open_block:
        warn(
            f"ctrl.swap inside {block}: the block was of the former expansion, the copies of the new one run inside it "
            "with their own alpha. Open a block after the swap",
            stacklevel=3,
        )


def _changeable(model: nn.Module) -> ControlModel:
    """Return the expanded model without its wrapper. Raises ConfigError if its parts cannot be taken off."""
    expanded = bare_expanded(model)
    if block := expanded.control.following_block:
        raise ConfigError(
            f"{block} is open on this model and would not see the passes of another expansion: end that block before "
            "ctrl.swap or ctrl.unload, and open one on the model as it is then"
        )
    if sharded(expanded) or is_offloaded(expanded):
        raise ConfigError(
            "the model is sharded or offloaded, so its copies cannot be taken off: exchange them before fully_shard or "
            "a dispatch, or ctrl.load the base and the other expansion anew"
        )
    return expanded


def _check_base(base: Any, other: Expansion, sums: Sums, allow_other: bool) -> None:
    """Raise ConfigError if the expansion was made on a base of other depth or, unless allowed, on another one.

    That is one of other weights, or whose config computes something else with them.
    """
    control = other.control
    own = {"fingerprint": control.fingerprint, "dtype": control.fingerprint_dtype, "part_prints": control.part_prints}
    here = {"fingerprint": fingerprint(base), "dtype": str(base.dtype), "part_prints": part_prints(base)}
    _check_type(base, other)
    same = same_base(own, here)
    rows = other_rows({"sums": control.sums}, {"sums": sums})
    different = differences(control.computes, computes(base.config))
    if different and not allow_other:
        raise ConfigError(
            f"this expansion was made on a base whose config computes something else: {different} (allow_other_base="
            "True puts it onto this one)"
        )
    if len(decoder_layers(base)) != control.total or ((same is False or rows) and not allow_other):
        raise ConfigError(
            "this expansion was made on another base model, or on other weights of this one: put it onto its own base "
            "(allow_other_base=True puts it onto one of the same shapes)"
        )
    _warn_of_base_as_it_runs(base, other)


def _warn_of_base_as_it_runs(base: Any, other: Expansion) -> None:
    """Warn, as `ctrl.load` does, of what makes outputs others on a base of the same weights."""
    as_it_runs = base_as_it_runs(base)
    then = {**as_it_runs, **(other.facts or {}), "packed": packed_print(other.control.packed)}
    here = {**as_it_runs, "packed": packed_print(packed_samples(base))}
    found = (other_buffers(then, here), other_kinds(then, here), other_type(then["dtype"], base))
    for text in filter(None, found):
        warn(text, stacklevel=5)
    agree(base, then, named=False)


def _check_type(base: Any, other: Expansion) -> None:
    """Raise ConfigError for plain copies in fp32 on a base in a half type, in which copies there compute rounded."""
    copies = [part.expanded for part in other.parts if other.control.config.expanded == "full"]
    wide = any(p.dtype == torch.float32 for one in copies for p in one.parameters())
    if wide and base.dtype in HALF and not any(isinstance(one, HalfComputing) for one in copies):
        raise ConfigError(
            f"this expansion was made on a base in fp32, this one is in {base.dtype}, in which copies compute "
            "in another way: ctrl.save the expansion and ctrl.swap the folder, or load the base in fp32"
        )
