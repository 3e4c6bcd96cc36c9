"""Load a base model with its matrices in 8 or 4 bit: its copies, or adapters, train next to them in floats."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from ctrl.quantised import has_quantised, plain_linears
from ctrl.structure import decoder_layers
from experiments.common.errors import ModelError
from experiments.models.precision import DTYPES

Bits = Literal["8bit", "4bit"]
PACKAGES = {"8bit": "torchao", "4bit": "bitsandbytes"}
# bytes of a weight with its scales: one scale of 4 bytes for each row, or one for each block of 64
BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
PACKS = "support_avx512bf16_for_cpu"  # field of bitsandbytes' 4-bit modules


def check_bits(name: str, bits: Bits) -> None:
    """Raise ModelError if this machine cannot hold matrices so. name: of the base model."""
    package = PACKAGES[bits]
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"quantised: {bits} of base_model {name!r} needs the package {package}: pip install {package}, or leave "
            "quantised out"
        )


def quantisation(bits: Bits, compute: str) -> Any:
    """Return transformers' settings. compute: in which floats products are computed, bf16 or fp32.

    8 bit: whole numbers with a scale for each row (torchao). 4 bit: NF4 with a scale for each 64 values (bitsandbytes).
    Activations stay in floats, so a copy can start as exactly what the quantised matrix computes. The head stays in
    floats.
    """
    if bits == "4bit":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[compute])
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def keep_gradients(model: nn.Module) -> None:
    """Let no module of bitsandbytes change its weights for CPUs with AVX-512 at its first pass in evaluation mode.

    Its product with the changed weights has no gradient, and training afterwards gets none either, without an error.
    """
    for module in model.modules():
        if hasattr(module, PACKS):
            setattr(module, PACKS, False)


def dequantise(model: PreTrainedModel) -> PreTrainedModel:
    """Replace quantised matrices by those in floats that they compute with, in place. Other models stay as they are.

    What was trained next to the quantised base can be merged into this one.
    """
    if not has_quantised(model):
        return model
    for layer in decoder_layers(model):
        plain = plain_linears(layer)
        for name, module in list(layer.named_modules()):
            if id(module) in plain:
                layer.set_submodule(name, plain[id(module)])
    for owner in (model, model.config):
        for name in ("quantization_config", "quantization_method", "hf_quantizer"):
            vars(owner).pop(name, None)
    vars(model)["is_quantized"] = False
    return model
