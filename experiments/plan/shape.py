"""Build an arm's model without data: parameters on device meta, then fake tensors that a training pass can read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from ctrl.control_model import ControlModel
from ctrl.structure import decoder_layers
from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig
from experiments.methods import Method, MethodContext
from experiments.methods.config import ArmConfig
from experiments.methods.reference import AtLabels, keeps_base
from experiments.methods.saving import is_peft
from experiments.methods.tables import LOSS_TERMS
from experiments.models.base import model_config
from experiments.models.head import inner
from experiments.models.precision import Precision
from experiments.models.quantised import BYTES, Bits
from experiments.training.checkpointing import checkpoint_layers


@dataclass(frozen=True)
class Counts:
    """Parameters of an arm's model. added: those that the base does not have. largest: the most of one layer.

    outside: of what is in no decoder layer (embedding, head, last norm).
    """

    base: int
    total: int
    trained: int
    added: int
    largest: int
    outside: int


@dataclass
class Shape:
    """An arm's model, prepared on device meta as `Method.prepare` and `hold_frozen` leave it. Trace it once."""

    model: Any
    method: Method
    precision: Precision
    counts: Counts
    base_cast: int  # bytes of bf16 copies of the base's linear layers in an evaluation
    packed: int = 0  # bytes that frozen matrices take less than here, if the base is quantised
    packed_base: int = 0  # bytes that the base alone takes less than in fp32
    base_copies: int = 0  # bytes of the copies of the base that loss terms keep
    unknown: list[str] = field(default_factory=list)  # what the plan leaves out
    name: str = "this arm"

    def bytes_of(self, trained: bool) -> int:
        """Bytes of the weights that train, or of the frozen ones."""
        size = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad == trained)
        return size if trained else size - self.packed

    def linear_cast(self) -> int:
        """Bytes of bf16 copies that an evaluation holds of linear layers in fp32 (`Precision.held`)."""
        cast = self.precision.linear_parameters(self.model)
        return sum(2 * p.numel() for p in cast if p.requires_grad or not self.packed)

    @property
    def kept_copies(self) -> int:
        """Copies of the trained weights that the method keeps."""
        return sum(part.kept_copies for part in self.method.additions)


def base_model(config: ExperimentConfig) -> PreTrainedModel:
    """Build the base model of a config on device meta. Raises ModelError for a name without a config.json."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            model_config(config.base_model, config.trust_remote_code),
            dtype=torch.float32,
            trust_remote_code=config.trust_remote_code,
            **({"attn_implementation": config.attention} if config.attention else {}),
        )
    return model


def build(config: ExperimentConfig, arm: ArmConfig, precision: Precision) -> Shape:
    """Prepare an arm's model on device meta. Raises ConfigError for methods that read text before they train."""
    method, base = arm.build(), base_model(config)
    before, linear = base.num_parameters(), precision.linear_parameters(base.requires_grad_(False))
    inside = _layer_matrices(base) if config.quantised else []
    cast = 2 * (sum(p.numel() for p in linear) - sum(p.numel() for p in inside) * precision.bf16)
    packed_base = _saved(inside, config.quantised) if config.quantised else 0
    if method.tuning.reads_old:
        raise ConfigError(f"arm {arm.name!r}: {arm.method_name} reads text before it trains, so it cannot be planned")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = method.prepare(base, MethodContext(config.seed, precision)).train()
    precision.hold_frozen(model)
    readers = _readers(method)
    one_copy = 0 if not readers or _has_base(model) else _copy_bytes(model, precision)
    packed = _quantise(model, config.quantised) if config.quantised else 0
    total = sum(p.numel() for p in model.parameters())
    layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(inner(model))]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counts = Counts(before, total, trained, total - before, max(layers), total - sum(layers))
    unknown = [f"{name}: its passes of the base model" for name in readers]
    if config.quantised == "8bit" and not precision.bf16:
        unknown.append("8 bit in fp32: the matrices in floats that a pass keeps")
    return Shape(
        model, method, precision, counts, cast, packed, packed_base, len(readers) * one_copy, unknown, arm.name
    )


def _layer_matrices(model: Any) -> list[torch.Tensor]:
    """Return what a quantised base has in few bits: frozen matrices of decoder layers; not the head."""
    modules = (module for layer in decoder_layers(inner(model)) for module in layer.modules())
    found = {id(m.weight): m.weight for m in modules if isinstance(m, nn.Linear)}
    return [weight for weight in found.values() if not weight.requires_grad]


def _quantise(model: Any, bits: Bits) -> int:
    """Return the bytes that a quantised base takes less than it does here.

    torchao's product in 8 bit keeps its matrix in floats for the backward pass. A matrix in fp32 does the same here,
    where autocast makes the floats; bitsandbytes keeps none.
    """
    matrices = _layer_matrices(model)
    if bits == "8bit":
        for matrix in matrices:
            matrix.data = matrix.data.float()
    return _saved(matrices, bits)


def _saved(matrices: list[torch.Tensor], bits: Bits) -> int:
    return round(sum((matrix.element_size() - BYTES[bits]) * matrix.numel() for matrix in matrices))


def _readers(method: Method) -> list[str]:
    """Return the names of the loss terms that read the base model."""
    names = {kind: name for name, kind in LOSS_TERMS.items()}
    kinds = [type(term) for term in method.losses if issubclass(term.active_class(), AtLabels)]
    return [names.get(kind, kind.__name__) for kind in kinds]


def _has_base(model: Any) -> bool:
    """Return `reference.has_base` of a model without values, whose adapters count as zero at the start."""
    return keeps_base(model) if is_peft(model) else isinstance(model, ControlModel)


def _copy_bytes(model: Any, precision: Precision) -> int:
    """Return the bytes of the copy that `Reference` makes."""
    base = copy.deepcopy(model).requires_grad_(False)
    precision.hold_frozen(base)
    return sum(p.numel() * p.element_size() for p in base.parameters())


@contextmanager
def faked(shape: Shape, checkpointing: Any) -> Iterator[Any]:
    """Give the model fake tensors inside the block, in the mode in which they compute. The shape is used up."""
    with FakeTensorMode() as mode:
        _fake(shape.model)
        for module in shape.model.modules():
            if isinstance(module, ControlModel):
                module.control.look_from(torch.device("cpu"))
        checkpoint_layers(shape.model, checkpointing, shape.name)
        yield mode


def _fake(model: nn.Module) -> None:
    """Replace all parameters and buffers by fake ones of the CPU; tied ones stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for name, value in values.items():
                if value is None:
                    continue
                if id(value) not in made:
                    new: Any = torch.empty(value.shape, dtype=value.dtype)
                    if isinstance(value, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=value.requires_grad)
                    made[id(value)] = new
                values[name] = made[id(value)]
