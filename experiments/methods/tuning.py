"""What trains: all weights, some layers in place, or copies of some layers (Control LLM). Adapters: `low_rank`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator, model_serializer, model_validator
from transformers import PreTrainedModel

import ctrl
from ctrl import ControlConfig
from ctrl.structure import decoder_layers, place
from experiments.methods.base import MethodContext, Tuning
from experiments.methods.low_rank import linear_names


class Full(Tuning):
    """Train all weights. With `replay` in the arm this is experience replay."""

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        model.requires_grad_(True)
        return model


class Partial(Tuning):
    """Train some decoder layers in place: those that Control LLM would copy."""

    in_control: ClassVar[bool] = True
    layers: int | tuple[int, ...] = Field(8, description="how many, evenly spread, or their indices; -1: the last")

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, value: Any) -> Any:
        return ControlConfig(layers=value).layers  # which checks them

    @classmethod
    def from_control(cls, control: ControlConfig) -> Partial:
        return cls.model_validate({"layers": control.layers})

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        layers = decoder_layers(model)
        model.requires_grad_(False)
        for index in place(self.layers, len(layers)):
            layers[index].requires_grad_(True)
        return model

    @property
    def layer_choice(self) -> int | Sequence[int]:
        return self.layers


class Half(Tuning):
    """Train half of the matrices of each decoder layer, drawn by the seed; all else is frozen (HFT, arXiv 2404.18466).

    Half of the attention's matrices and half of the others. Of an odd number, one more trains in every second layer.
    Norms, embeddings and the head do not train. The paper draws anew in each of its training stages; a run here is one.
    """

    def linear_layers(self, model: PreTrainedModel) -> list[str] | None:
        return linear_names(model, "all")

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        generator = torch.Generator().manual_seed(context.seed)
        model.requires_grad_(False)
        names = {target: linear_names(model, target) for target in ("all", "mlp")}
        where = {id(m): name for name, m in model.named_modules()}
        for index, layer in enumerate(decoder_layers(model)):
            inside = [name for name in names["all"] if name.startswith(f"{where[id(layer)]}.")]
            others = [name for name in inside if name in names["mlp"]]
            for group in ([name for name in inside if name not in others], others):
                for i in torch.randperm(len(group), generator=generator)[: (len(group) + index % 2) // 2].tolist():
                    model.get_submodule(group[i]).requires_grad_(True)
        return model


class Control(Tuning):
    """Control LLM: train copies of some layers next to the frozen originals. The YAML's fields are ControlConfig's."""

    in_control: ClassVar[bool] = True
    structure: ClassVar[str | None] = None  # a subclass may fix it; the config then holds that one
    config: ControlConfig = Field(default_factory=ControlConfig)

    @classmethod
    def with_structure(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a ControlConfig with the structure that this class fixes, if it fixes one.

        Raises ValueError if they ask for another one.
        """
        if cls.structure is None:
            return fields
        given = fields.get("structure", cls.structure)
        if given != cls.structure:
            raise ValueError(f"method {cls.structure!r} has structure {cls.structure!r}, but structure={given!r}")
        return {**fields, "structure": cls.structure}

    @model_validator(mode="before")
    @classmethod
    def _from_fields(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {"config": ControlConfig.from_dict(cls.with_structure(fields))}

    @model_serializer
    def _to_fields(self) -> dict[str, Any]:
        return self.config.to_dict()

    @classmethod
    def from_control(cls, control: ControlConfig) -> Control:
        return cls.model_validate(cls.with_structure(cls.fields_of(control)))

    @classmethod
    def fields_of(cls, control: ControlConfig) -> dict[str, Any]:
        """Return a ControlConfig as plain values. Its default structure asks for nothing if this class fixes one."""
        fields = control.to_dict()
        default = cls.structure is not None and control.structure == ControlConfig.structure
        return {name: value for name, value in fields.items() if name != "structure" or not default}

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)  # gates and low-rank copies start at random numbers
            return ctrl.expand(model, self.config)

    @property
    def draws(self) -> bool:
        return self.config.expanded == "lora"

    @property
    def layer_choice(self) -> int | Sequence[int]:
        return self.config.layers


class Stack(Control):
    """LLaMA Pro (arXiv 2401.02415): train copies placed after some layers; at the start they are the identity."""

    structure: ClassVar[str | None] = "stack"


class Hybrid(Control):
    """The chosen layers alternate stack and concat."""

    structure: ClassVar[str | None] = "hybrid"
