"""Add up all values of a base's tensors exactly: a few of them may have changed, which samples miss."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ctrl.layer import is_added
from ctrl.quantised import has_quantised, is_quantised
from ctrl.sharded import is_sharded
from ctrl.structure import head_parameters

Sums: TypeAlias = dict[str, tuple[str, int]]  # type and sum by the name of a tensor
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def exact_sums(model: Any, whole: bool = True) -> Sums:
    """Add up the bytes of all values of the base, eight at a time: name -> type and sum.

    It reads all of them: the 16 GB of an 8B model in bf16 take half a second on one core of a CPU (31 GB/s).
    Of a quantised base embeddings and head alone, unless they are quantised too. whole=False: of any base these and its
    saved buffers, as is fast enough for each `ctrl.pretrained`.
    """
    heads = [get() for get in (model.get_input_embeddings, model.get_output_embeddings)]
    found = {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters(recurse=False)}
    quantised = has_quantised(model)
    every, trained = whole and not quantised, head_parameters(model)
    wanted = {n: p for n, p in model.named_parameters() if (every or id(p) in found) and n not in trained}
    base = {n: p for n, p in wanted.items() if not is_added(n)}
    named = {n: p for n, p in base.items() if is_held(p) and not is_quantised(p) and p.dtype in FLOATS}
    named |= {} if quantised else _saved_buffers(model)
    return {n: (str(p.dtype), byte_sum(p)) for n, p in named.items()}


def _saved_buffers(model: Any) -> dict[str, Tensor]:
    """Return the buffers of the base that are in its files."""
    passing = {id(m._buffers[name]) for m in model.modules() for name in m._non_persistent_buffers_set}
    base = {n: b for n, b in model.named_buffers() if id(b) not in passing and is_held(b) and b.is_floating_point()}
    return {name: buffer for name, buffer in base.items() if not is_added(name)}


def byte_sum(tensor: Tensor) -> int:
    """Add up bytes as integers of 64 bits, which is exact on every device and as fast as memory."""
    flat = tensor.detach().flatten()
    flat = flat.clone() if flat.storage_offset() else flat  # its bytes may begin between two integers
    data = bits(flat)
    whole = len(data) // 8 * 8
    return int(data[:whole].view(torch.int64).sum()) + int(data[whole:].sum())


def other_rows(saved: dict[str, Any], here: dict[str, Any]) -> str:
    """Say that tensors of two bases of one type differ, though no sampled value does; empty if not.

    It is no other base: whoever adds a token for padding resizes the base, which draws the new rows at random.
    """
    sums, others = (facts.get("sums") or {} for facts in (saved, here))
    both = sums.keys() & others.keys()
    odd = sorted(n for n in both if sums[n][0] == others[n][0] and sums[n][1] != others[n][1])
    if not odd:
        return ""
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return (
        f"{', '.join(odd[:3])}{more}: values of this base are not those of the base in training, so its outputs are "
        "others. Load the base in the type of the training: to(dtype) and back rounds it. resize_token_embeddings "
        "draws new rows at random: call torch.manual_seed before it, or save the resized base and load that"
    )


def bits(values: Tensor) -> Tensor:
    """Return the bytes of values, in which NaN equals itself."""
    return values.view(torch.uint8)


def is_held(parameter: Tensor) -> bool:
    return not (parameter.is_meta or is_sharded(parameter) or parameter.numel() == 0)
