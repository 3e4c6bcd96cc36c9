"""Recognise a base model by its weights, so that copies are not loaded onto another model of the same shapes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ctrl.control import Control
from ctrl.layer import ADDED
from ctrl.quantised import has_quantised
from ctrl.sharded import is_sharded

SAMPLE = 64  # values of each parameter, at most
EXACT = ("torch.float64", "torch.float32", "torch.bfloat16")  # rounded to bf16, these give the same values


def fingerprint(model: Any) -> str | None:
    """Hash a sample of every parameter of the base, rounded to bf16.

    None if this process does not hold all weights, or if they are quantised.

    A base that is loaded in bf16 has the fingerprint that it has in fp32. Costs one small copy from the device.
    """
    return _digest(_samples(model))


def remember_base(control: Control, model: Any) -> None:
    """Note the weights of the base: its fingerprint, and the samples that `changed` compares."""
    control.samples = _samples(model)
    control.fingerprint = _digest(control.samples)


def changed(model: Any) -> list[Tensor]:
    """List the base's parameters that are no longer what they were when it was expanded, as far as a sample shows.

    Merged adapters do that, or parts that trained and were frozen again. Those in fp16 are not compared: they may have
    been rounded. Empty for a plain model.
    """
    control = getattr(model, "control", None)
    before = control.samples if isinstance(control, Control) else None
    now = _samples(model) if before else None
    if not before or not now:
        return []
    parameters = dict(model.named_parameters())
    names = [name for name in now if name in before and str(parameters[name].dtype) in EXACT]
    return [parameters[name] for name in names if not torch.equal(before[name], now[name])]


@torch.no_grad()
def _samples(model: Any) -> dict[str, Tensor] | None:
    """Take up to SAMPLE values of every parameter of the base, in host memory: name -> values in bf16."""
    found = {n: p for n, p in model.named_parameters() if not any(f".{part}" in n for part in ADDED)}
    if has_quantised(model) or any(p.is_meta or is_sharded(p) or p.numel() == 0 for p in found.values()):
        return None
    samples = [_sample(p) for p in found.values()]
    values = torch.cat([sample.to(samples[0].device) for sample in samples]).cpu()
    return dict(zip(found, values.split([len(sample) for sample in samples]), strict=True))


def _digest(samples: dict[str, Tensor] | None) -> str | None:
    if samples is None:
        return None
    values = torch.cat(list(samples.values()))
    return hashlib.sha256(values.view(torch.int16).numpy().tobytes()).hexdigest()[:16]


def same_base(saved: dict[str, Any], here: dict[str, Any]) -> bool | None:
    """Compare the fingerprints in two `base_facts`; None if one is missing, or the dtypes round in different ways."""
    prints, dtypes = [saved.get("fingerprint"), here.get("fingerprint")], [saved.get("dtype"), here.get("dtype")]
    exact = dtypes[0] == dtypes[1] or all(dtype in EXACT for dtype in dtypes)
    return prints[0] == prints[1] if all(prints) and exact else None


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().flatten()
    return flat[:: -(-len(flat) // SAMPLE)].bfloat16()
