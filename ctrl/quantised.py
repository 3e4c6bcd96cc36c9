"""Copy layers with quantised weights (bitsandbytes, torchao, quanto, GPTQ, ...), and refuse what needs their floats.

The pretrained layer stays quantised and frozen. Its copy holds, in floats, the matrices that the quantised modules
compute with. They are read by running the module on the identity, so no library has to be known.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ctrl.errors import ConfigError
from ctrl.sharded import is_sharded

PACKED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.quantizable",
)  # torch's own: no tensor of theirs is a parameter or buffer
BLOCK = 1024  # rows of the identity that run at once
WAY_OUT = "use expanded='lora', or expand the model first and then quantise its frozen linear modules"
WHERE = re.compile(r"_.*|.*skip_modules|modules_to_not_convert|.*offload|.*storage")  # settings of where, not of how


def weights_in(parameter: Tensor) -> int:
    """Return how many weights a parameter holds: in 4 bits bitsandbytes packs two into one value."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else math.prod(shape)


def is_quantised(tensor: Tensor) -> bool:
    """Return whether a tensor holds no plain floats: integers, floats of a byte, or a class that packs them."""
    plain = tensor.is_floating_point() and tensor.element_size() > 1
    return not plain or (type(tensor.data) is not Tensor and not is_sharded(tensor))


def has_quantised(model: nn.Module) -> bool:
    """Return whether any weight of the model is quantised."""
    return any(map(is_quantised, model.parameters())) or any(map(is_quantised_linear, model.modules()))


def is_quantised_linear(module: nn.Module) -> bool:
    """Return whether the module is a matrix with quantised weights: in parameters, buffers or neither (torch.ao)."""
    sizes = [getattr(module, name, None) for name in ("in_features", "out_features")]
    packed = type(module).__module__.startswith(PACKED)
    return all(isinstance(size, int) for size in sizes) and (packed or any(map(is_quantised, _own(module))))


def kinds(model: nn.Module) -> list[str]:
    """Name the classes of the quantised matrices and of their weights; empty for a model in floats."""
    found = filter(is_quantised_linear, model.modules())
    return sorted({f"{type(m).__name__} ({type(getattr(m, 'weight', None)).__name__})" for m in found})


def settings_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the settings with which transformers quantised a model, as JSON has them; None of others.

    Those of the 4 bits' dtype of computing, of a threshold or of activations are in no packed byte, and change outputs.
    """
    given: Any = getattr(model.config, "quantization_config", None)
    if given is None or not has_quantised(model):
        return None
    values = given if isinstance(given, dict) else given.to_dict()
    kept = {name: value for name, value in values.items() if not WHERE.fullmatch(name)}
    return dict(json.loads(json.dumps(kept, default=str)))


@contextlib.contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """Put the quantised matrices into train mode inside the block, in which they compute the same or more exactly.

    In eval mode bitsandbytes lays out 4 bits anew for some CPUs, and no gradient passes such a matrix, ever after.
    """
    resting = [module for module in model.modules() if not module.training and is_quantised_linear(module)]
    for module in resting:
        module.training = True
    try:
        yield
    finally:
        for module in resting:
            module.training = False


def keep_as_in_training(model: nn.Module) -> None:
    """Put the quantised matrices into train mode for good, see `as_in_training`: else an evaluation in the middle of a
    training would cut the gradients after it. Int8 of bitsandbytes, whose state notes the mode, follows it: on CPUs it
    rounds hidden states in eval mode alone, and the base does so too."""
    for module in filter(is_quantised_linear, model.modules()):
        _keep_as_in_training(module)


def run_as_in_training(model: nn.Module) -> None:
    """As `keep_as_in_training`, for a plain model that shares the weights of one that trains, whatever mode is set."""
    for module in filter(is_quantised_linear, model.modules()):
        module.register_forward_pre_hook(_keep_as_in_training)


def _keep_as_in_training(module: nn.Module, *_: Any) -> None:
    module.training |= not hasattr(getattr(module, "state", None), "is_training")


def refuse_repacked(model: nn.Module) -> None:
    """Raise ConfigError if bitsandbytes has laid out the base's matrices anew, see `as_in_training`."""
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        raise ConfigError(
            "the quantised base has run in eval mode on this CPU, for which bitsandbytes has laid out its matrices "
            "anew: no gradient passes them. Load the base anew and expand it before it runs"
        )


def plain_linears(layer: nn.Module) -> dict[int, nn.Module]:
    """Build for each quantised linear module of a layer, by its id, the nn.Linear that computes the same.

    Raises ConfigError for quantised weights of other modules (experts).
    """
    linears = [module for module in layer.modules() if is_quantised_linear(module)]
    if any(type(module).__module__.startswith(PACKED) for module in linears):
        raise ConfigError(
            f"{type(layer).__name__} has modules of torch.ao.quantization, whose state cannot be loaded in part, as "
            "ctrl.load does: expand the base in floats, or quantise it with bitsandbytes, torchao or quanto"
        )
    for name, module in layer.named_modules():
        if module not in linears and any(map(is_quantised, module.parameters(recurse=False))):
            raise ConfigError(
                f"{name} of {type(layer).__name__}, a {type(module).__name__}, has quantised weights that are no "
                f"matrix, so its copy cannot be made in floats: {WAY_OUT}"
            )
    try:
        with as_in_training(layer):
            made = {id(module): _plain_linear(module, _float_dtype(layer)) for module in linears}
        return {one: plain.train(layer.training) for one, plain in made.items()}
    except Exception as error:
        raise ConfigError(
            f"the quantised modules of {type(layer).__name__} do not run here ({type(error).__name__}: {error}), so "
            f"their copies cannot be made in floats: {WAY_OUT}"
        ) from error


@torch.no_grad()
def shared_state(layer: nn.Module) -> list[Tensor]:
    """List what a low-rank copy shares with its quantised layer besides parameters.

    Modules of bitsandbytes' int8 run once before: in its first run each moves the scales from the weight to its
    `state`, and a second module with this weight would find none.
    """
    found: list[Tensor] = []
    for module in filter(is_quantised_linear, layer.modules()):
        linear: Any = module
        found += linear.buffers(recurse=False)
        if hasattr(linear, "state"):
            with as_in_training(linear):
                linear(torch.zeros(1, linear.in_features, dtype=_float_dtype(layer), device=_own(linear)[0].device))
            found += [value for value in vars(linear.state).values() if isinstance(value, Tensor)]
    return found


@torch.no_grad()
def _plain_linear(module: Any, dtype: torch.dtype) -> nn.Linear:
    device, bias = _own(module)[0].device, getattr(module, "bias", None)
    plain = nn.Linear(module.in_features, module.out_features, bias is not None, device, dtype)
    if bias is not None:
        plain.bias.copy_(bias)
    identity = torch.eye(module.in_features, dtype=dtype, device=device)
    columns = [module(rows).float() for rows in identity.split(BLOCK)]
    weight = torch.cat(columns) if bias is None else torch.cat(columns) - bias.float()
    plain.weight.copy_(weight.T)
    return plain


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _float_dtype(layer: nn.Module) -> torch.dtype:
    """Return the type in which the layer computes: that of its plain parameters, norms for one."""
    return next((p.dtype for p in layer.parameters() if not is_quantised(p)), torch.get_default_dtype())


def refuse_quantised(model: nn.Module, what: str) -> None:
    """Raise ConfigError if the base is quantised. what: the operation, which writes weights in floats."""
    if has_quantised(model):
        raise ConfigError(
            f"the base model is quantised, {what} needs its weights in floats: ctrl.save the expansion, ctrl.load it "
            f"onto the base in bf16 or fp32, and call {what} there"
        )


def refuse_quantised_copies(copies: Iterable[nn.Module], low_rank: bool) -> None:
    """Raise ConfigError if copies are quantised: what is saved of them could not be loaded onto copies in floats.

    low_rank: the copies share the modules of their base, which may be quantised; their adapters may not.
    """
    named = [pair for copied in copies for pair in copied.named_modules()]
    found = [name for name, module in named if is_quantised_linear(module) and ("lora_" in name or not low_rank)]
    if found:
        raise ConfigError(
            f"{len(found)} modules of the copies are quantised (first: {found[0]}), and a saved expansion is in "
            "floats: ctrl.save the model before you quantise it, or ctrl.merge_back first and quantise the plain model"
        )
