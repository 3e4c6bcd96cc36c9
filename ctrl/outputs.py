"""The output of a forward pass with labels: the fields of the base class, lm_loss and divergence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

IGNORED = "keys_to_ignore_at_inference"
FIELDS = ("lm_loss", "divergence")  # of the output, next to those of the base class


def ignore_fields(config: Any) -> None:
    """Make Trainer.predict return logits alone, without the fields that an expanded model adds to its output."""
    setattr(config, IGNORED, [*(getattr(config, IGNORED, None) or []), *FIELDS])


def heed_fields(config: Any) -> None:
    """Undo one `ignore_fields`: other expanded models may share the config object."""
    ignored = list(getattr(config, IGNORED, None) or [])
    for name in FIELDS:
        if name in ignored:
            ignored.remove(name)
    vars(config).pop(IGNORED, None)
    if ignored != (getattr(config, IGNORED, None) or []):
        setattr(config, IGNORED, ignored)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output, those in its tuples too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | ModelOutput):
        for part in value.to_tuple() if isinstance(value, ModelOutput) else value:
            yield from tensors(part)


def with_loss(out: Any, loss: Tensor, divergence: Tensor | None) -> Any:
    """Return the output with this loss, and with the fields lm_loss and divergence if it has fields."""
    if isinstance(out, tuple):  # return_dict=False
        return (loss, *out[1:])
    values = {f.name: getattr(out, f.name) for f in dataclasses.fields(out)}
    return _output_class(type(out))(**{**values, "loss": loss}, lm_loss=out.loss, divergence=divergence)


def _output_class(cls: type[ModelOutput]) -> type[ModelOutput]:
    """Make a subclass of cls with the fields lm_loss and divergence.

    They must be fields: autocast wrappers rebuild an output from its fields.
    """
    if cls not in _OUTPUTS:
        extra = [(name, Tensor | None, None) for name in FIELDS]
        _OUTPUTS[cls] = dataclasses.make_dataclass(f"Control{cls.__name__}", extra, bases=(cls,))
    return _OUTPUTS[cls]


@dataclasses.dataclass
class ControlOutput(CausalLMOutputWithPast):
    """Output of a forward pass with labels. lm_loss: cross entropy; divergence: before its weight, None if that is 0.

    With weight 0 nothing is computed unless `ctrl.diagnostics` is open.
    """

    lm_loss: Tensor | None = None
    divergence: Tensor | None = None


_OUTPUTS: dict[type[ModelOutput], type[ModelOutput]] = {CausalLMOutputWithPast: ControlOutput}
