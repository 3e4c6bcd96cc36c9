"""Describe an expanded model and its base: what a saved expansion notes, and a base to load onto must agree with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ctrl.computes import computes
from ctrl.fingerprint import packed_print
from ctrl.generation import ends, labels, padding, settings
from ctrl.precision import HALF
from ctrl.quantised import kinds, settings_of
from ctrl.sums import Sums, exact_sums

MERGED = ", merged with copies"  # after the name of a base that is no longer the one of this name


def description(model: Any, sums: Sums | None = None) -> dict[str, Any]:
    """Describe an expanded model: `control`, its config, and `base`, the facts of its base when it was expanded. Their
    `sums` are those of now (`exact_sums`, if they are not passed): a type may have rounded weights since."""
    control = model.control
    base = {**base_facts(model), "fingerprint": control.fingerprint, "fingerprint_dtype": control.fingerprint_dtype}
    base |= {"part_prints": control.part_prints, "expanded_layers": control.layers, "buffers": buffer_types(model)}
    base["class"] = class_name(model)
    base |= {"rounded": rounded_buffers(model), "quantised": kinds(model), "packed": packed_print(control.packed)}
    base["quantisation"] = settings_of(model)
    base["sums"] = {name: list(found) for name, found in (exact_sums(model) if sums is None else sums).items()}
    return {"control": control.config.to_dict(), "base": base}


def class_name(model: Any) -> str:
    """Return the name of a model's class in transformers, also if it is sharded."""
    return next(cls.__name__ for cls in type(model).__mro__ if not cls.__name__.startswith("FSDP"))


def base_facts(model: nn.Module) -> dict[str, Any]:
    """Describe a base model by the facts in which the base to load onto must agree with the base that was expanded."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    return {
        "name": config._name_or_path and config._name_or_path + vars(model).get("_merged_by_ctrl", ""),
        "model_type": config.model_type,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_hidden_layers,
        "vocab_size": text.vocab_size,
        "dtype": str(model.dtype),
        "computes": computes(config),
    }


def note_merged(plain: Any) -> None:
    """Note that a plain model is not the one of its name: a second expansion needs the merged weights as its base."""
    vars(plain)["_merged_by_ctrl"] = MERGED


def rounded_buffers(model: nn.Module) -> list[str] | None:
    """Name the buffers in fp32 that no file holds and whose values a half type has too: `model.to(half).float()` leaves
    them rounded. Some are such by their nature. None if some are offloaded."""
    found = {f"{path}.{n}": module._buffers[n] for path, module in model.named_modules() for n in _unsaved(module)}
    wide = {name: buffer for name, buffer in found.items() if buffer is not None and buffer.dtype == torch.float32}
    if any(buffer.is_meta for buffer in wide.values()):
        return None
    return sorted(n for n, b in wide.items() if any(torch.equal(b.to(half).float(), b) for half in HALF))


def _unsaved(module: nn.Module) -> set[str]:
    return module._non_persistent_buffers_set


def base_as_it_runs(model: Any) -> dict[str, Any]:
    """Describe what of a base changes outputs and may be otherwise at each load of the same weights."""
    facts = {"dtype": str(model.dtype), "buffers": buffer_types(model), "rounded": rounded_buffers(model)}
    chosen = {"pad": padding(model), "labels": labels(model), "ends": ends(model), "generation": settings(model)}
    return {**facts, "quantised": kinds(model), "quantisation": settings_of(model), **chosen}


def buffer_types(model: nn.Module) -> list[str]:
    """List the types of the buffers that no file holds, RoPE's frequencies for one: `model.to(dtype)` rounds these too,
    a base that is loaded in this type has them in fp32."""
    made = [(module, name) for module in model.modules() for name in _unsaved(module)]
    found = [module._buffers[name] for module, name in made]
    return sorted({str(buffer.dtype) for buffer in found if buffer is not None and buffer.is_floating_point()})
