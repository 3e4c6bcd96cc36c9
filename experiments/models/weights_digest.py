"""Digest of a model's weights, with a file of digests that are known already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.numerics import some_of
from ctrl.sums import is_held
from experiments.common.files import parse_json, write_json
from experiments.common.hashing import cache_stamp, json_digest


def weights_digest(model: PreTrainedModel, known: Path | None = None) -> str:
    """Return the SHA-256 (64 hex digits) of all parameters and buffers with their names, dtypes and shapes.

    known: a JSON file of digests that were computed before, by the paths of the weight files and `cache_stamp`, or by
    the name and the commit of a model of the Hugging Face Hub. It is read and extended for these. Pass it only for a
    model as it was loaded.
    """
    stamp = _stamp(model) if known else None
    digests = _read_known(known) if known else {}
    if stamp in digests:
        return digests[stamp]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in _parts(tensor.detach()):
            plain: Any = part.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
            digest.update(plain)
    if known and stamp:
        write_json(known, _read_known(known) | {stamp: digest.hexdigest()})
    return digest.hexdigest()


def frozen_digest(model: nn.Module) -> str:
    """Return a digest of a sample of the parameters that stay frozen in a training; empty if some are not held here."""
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    parts = {f"{name} {i}": part for name, tensor in frozen.items() for i, part in enumerate(_parts(tensor.detach()))}
    if not all(map(is_held, parts.values())):
        return ""
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        plain: Any = some_of(part).contiguous().view(torch.uint8).cpu().numpy()
        digest.update(f"{name} {part.dtype}\n".encode() + plain.tobytes())
    return digest.hexdigest()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a packed one (of torchao) consists of."""
    if type(tensor) is Tensor or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _stamp(model: PreTrainedModel) -> str | None:
    """Return what changes when weight files change; None if that is not known."""
    if not model.name_or_path:
        return None
    folder = Path(model.name_or_path)
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    parts = [[str(p.resolve()), *cache_stamp(p)] for p in files]
    commit = getattr(model.config, "_commit_hash", None)
    if not parts and commit and not folder.exists():  # of the Hub: a commit has one content
        parts = [[model.name_or_path, commit]]
    packed = getattr(model.config, "quantization_config", None)
    how = [] if packed is None else [str(packed)]
    return json_digest([parts, str(model.dtype), *how]) if parts else None


def _read_known(path: Path) -> dict[str, str]:
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
