"""Load a base model with its frozen matrices as the file has them: half the memory, the same bits under autocast."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn

FLOATS = {"BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2"}  # names of safetensors


def stored_in_bf16(source: str) -> bool:
    """Return whether all weights of a model are stored in bf16. Only headers of files are read.

    source: a folder, or a Hugging Face name that was loaded before. config.json is not asked: if it says bf16 over
    weights in fp32, loading in bf16 would round what trains.
    """
    try:
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(snapshot_download(source, local_files_only=True, allow_patterns=["*.safetensors"]))
        found = {kind for file in folder.glob("*.safetensors") for kind in _dtypes(file)} & FLOATS
    except Exception:  # no file, no cache: the model is loaded in fp32, as ever
        return False
    return found == {"BF16"}


def widen_rest(model: nn.Module) -> None:
    """Hold matrices of linear layers in bf16 and all else in fp32, as `Precision.hold_frozen` leaves a frozen model."""
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in tied]
    narrow = {id(p) for module in linear for p in module.parameters(recurse=False)}
    for parameter in model.parameters():
        if id(parameter) not in narrow:
            parameter.data = parameter.data.float()
    half = {name for name, buffer in model.named_buffers() if buffer.dtype == torch.bfloat16}
    computed = _computed(model) if half - model.state_dict().keys() else {}
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            wide = computed.get(name, buffer) if name in half else buffer
            same = torch.equal(wide.to(buffer), buffer)  # else it is no longer what the config gives
            buffer.data = (wide if same else buffer).to(buffer.device).float()


def _computed(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that a model computes from its config (Gemma's scale of embeddings), in fp32; no weights."""
    with init_empty_weights(include_buffers=False):
        return dict(type(model)(copy.deepcopy(model.config)).named_buffers())


def _dtypes(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return {tensors.get_slice(name).get_dtype() for name in set(tensors.keys())}


def is_narrow(model: nn.Module) -> bool:
    """Return whether a model runs under autocast only, since its matrices and the rest have different types."""
    return {torch.bfloat16, torch.float32} <= {p.dtype for p in model.parameters()}


def widen_trained(model: nn.Module) -> None:
    """Convert to fp32 what trains: steps are smaller than the distance to the next number of a half type."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
