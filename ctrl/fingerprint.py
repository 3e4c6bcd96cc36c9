"""Recognise a base model by its weights, so that copies are not loaded onto another one of the same shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ctrl.layer import is_added
from ctrl.numerics import some_of
from ctrl.offloaded import in_memory
from ctrl.quantised import has_quantised, is_quantised, is_quantised_linear
from ctrl.structure import head_parameters
from ctrl.sums import FLOATS, bits, is_held

EXACT = ("torch.float64", "torch.float32", "torch.bfloat16")  # rounded to bf16, these give the same values


def fingerprint(model: Any) -> str | None:
    """Hash a sample of every parameter of the base, rounded to bf16.

    None if this process does not hold all weights, or if they are quantised.

    A base that is loaded in bf16 has the fingerprint that it has in fp32. Costs one small copy from the device.
    """
    return None if has_quantised(model) else digest(samples_of(model))


def rest_print(samples: dict[str, Tensor] | None, saved: Collection[str]) -> str | None:
    """Hash the samples of a base without the tensors that are saved whole, of which each base may have its own.

    New rows of embeddings are drawn anew in each process. None if no sample is left out.
    """
    rest = None if samples is None else {name: values for name, values in samples.items() if name not in saved}
    return digest(rest) if rest and samples is not None and len(rest) < len(samples) else None


@torch.no_grad()
def part_prints(model: Any) -> dict[str, str]:
    """Hash samples of the base's norms and of its embeddings, which most kinds of quantisation leave in floats, and
    the signs of a base in floats.

    They show that a quantised base is not another one of the same kind, or one in floats, and that one in fp16 is not
    another one in fp32. Parts that this process does not hold whole are left out.
    """
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    added = {id(p) for n, p in model.named_parameters() if is_added(n)}
    added |= {id(p) for p in head_parameters(model).values()}
    parts = {
        "norms": [p for norm in norms for p in norm.parameters(recurse=False) if id(p) not in added],
        "embeddings": list(model.get_input_embeddings().parameters(recurse=False)),
    }
    prints = {}
    for name, found in parts.items():
        if found and all(type(p) is nn.Parameter and is_held(p) and p.dtype in FLOATS for p in found):
            exact = all(str(p.dtype) in EXACT for p in found)
            samples = {str(i): some_of(p).cpu() for i, p in enumerate(found)}
            prints[name if exact else f"{name} in {found[0].dtype}"] = str(digest(samples))
    signs = None if has_quantised(model) else _signs(model)
    return prints | ({} if signs is None else {"signs": signs})


def _signs(model: Any) -> str | None:
    """Hash the signs of a sample of the base, which are the same in every floating-point type: fp16 rounds to other
    values than bf16. Embeddings and head are left out: they may have new rows, which are drawn anew at each load."""
    samples = samples_of(model)
    if samples is None:
        return None
    given = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m for p in m.parameters()}
    ends = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in given}
    found = [torch.signbit(values.flatten()) for name, values in samples.items() if name not in ends]
    return hashlib.sha256(torch.cat(found).numpy().tobytes()).hexdigest()[:16] if found else None


@torch.no_grad()
def samples_of(model: Any) -> dict[str, Tensor] | None:
    """Take up to 64 values of every parameter of the base in floats, in host memory; None if some are not held here.

    A head that trains with the copies is no part of it: it is saved with them, and starts at random elsewhere.
    """
    trained = head_parameters(model)
    named = {name: p for name, p in model.named_parameters() if name not in trained and not is_quantised(p)}
    found = in_memory(model, {name: p for name, p in named.items() if not is_added(name)})
    if not all(map(is_held, found.values())):
        return None
    return _on_host({name: some_of(p).contiguous() for name, p in found.items()})


@torch.no_grad()
def packed_samples(model: nn.Module) -> dict[str, Tensor]:
    """Take up to 64 bytes of every tensor of the base's quantised matrices, in host memory."""
    samples: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if is_quantised_linear(module) and not is_added(f"{path}."):
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                parts = [part for part in _parts(tensor.data) if is_held(part)] if is_quantised(tensor) else []
                samples |= {f"{path}.{name}.{i}": some_of(bits(p.contiguous())).clone() for i, p in enumerate(parts)}
    return _on_host(samples)


def packed_print(samples: dict[str, Tensor]) -> str | None:
    """Hash `packed_samples`; None of a base in floats."""
    return digest(samples) if samples else None


def _parts(tensor: Any) -> Iterator[Tensor]:
    """Yield the plain tensors of which a class of torchao or quanto is made; a plain tensor itself."""
    if type(tensor) is Tensor or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor.as_subclass(Tensor)
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _on_host(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move samples to host memory in one copy from the device."""
    if not samples:
        return {}
    first = next(iter(samples.values())).device
    parts = torch.cat([bits(sample).to(first) for sample in samples.values()]).cpu()
    sizes = [sample.nbytes for sample in samples.values()]
    pairs = zip(samples.items(), parts.split(sizes), strict=True)
    return {name: part.clone().view(sample.dtype) for (name, sample), part in pairs}


def digest(samples: dict[str, Tensor] | None) -> str | None:
    if samples is None:
        return None
    values = torch.cat([values.bfloat16().view(torch.int16) for values in samples.values()])  # autocast joins no bf16
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


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
        # earlier versions left out the heads of masked language models, which they saved, where the rest is now
        return prints[0] in (prints[1], rests[1]) or (rests[0] is not None and rests[0] == rests[1])
    there, here_parts = (facts.get("part_prints") or {} for facts in (saved, here))
    return False if any(there[part] != here_parts[part] for part in there.keys() & here_parts.keys()) else None


def holds_more(model: Any, dtype: str) -> bool:
    """Whether the base has values that this type (`torch.bfloat16`) rounds, as far as a sample shows."""
    narrow: Any = getattr(torch, dtype.removeprefix("torch."))
    base = (p for n, p in model.named_parameters() if not is_added(n) and not is_quantised(p))
    values = (some_of(p) for p in base)
    return any(not torch.equal(v.to(narrow).to(v.dtype), v) for v in values if not v.is_meta)
