"""Train adapters of any type that the installed PEFT has, with the fields of PEFT's own config class."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import warnings
from typing import Any, ClassVar, Literal, get_type_hints

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from ctrl.structure import decoder_layers
from experiments.common.errors import ConfigError
from experiments.common.section import nearest
from experiments.methods.base import MethodContext, Tuning
from experiments.methods.low_rank import linear_names, lora_names
from experiments.methods.reference import has_base
from experiments.methods.saving import tied_modules
from experiments.models.precision import Precision, compute_as_base

OWN = {  # fields of PEFT that the bench sets
    "task_type": "the bench trains causal language models",
    "peft_type": "the field `type` names it",
    "base_model_name_or_path": "the run's `base_model` names it",
    "revision": "the run's `base_model` names it",
    "inference_mode": "the adapters train",
    "auto_mapping": "PEFT writes it",
    "peft_version": "PEFT writes it",
}
REFUSED = {
    "adalora": "it moves ranks between layers in a call after each step, which the bench does not make",
    "xlora": "it mixes adapters that are trained already",
    "poly": "each of its passes needs the number of a task",
}
STARTS = {  # of init_lora_weights -> why it would not be what its name says
    "eva": "it needs text that is read before training, without which PEFT draws the usual start: take train: lora",
    "corda": "it needs text that is read before training: take train: corda",
    "pissa_niter": "it is drawn at random again when the adapter is loaded, which gives another model: take pissa",
}
IDLE = ("use_qalora", "qalora_group_size", "megatron_config", "megatron_core")  # fields for layers of other libraries
OWN_TARGETS = ("ia3", "ln_tuning", "trainable_tokens")  # types that are defined by what they adapt
LIKE_LORA = ("lora", "randlora")  # types that PEFT puts on fewer layers
PROBE = 8  # tokens of the pass that compares the start with the base
ROUNDING, AGAIN = 1e-4, 1e-6  # of the largest logit: of the start, and of the base that comes back (Mamba: 4e-7)


class Peft(Tuning):
    """Train adapters of any type of PEFT, such as `oft`, `osf` or `miss`; further fields are those of its config class.

    PEFT's own defaults hold. Types that do not start as the base model, that cannot be merged into its weights, or that
    put tokens before the text are refused with the reason.
    """

    model_config = ConfigDict(extra="allow")
    adapts: ClassVar[bool] = True
    type: str = Field(description="a type of PEFT, in small letters: oft, osf, shira, randlora, vera, miss, ...")
    targets: Literal["all", "mlp"] = Field(
        "all",
        description="linear layers that get an adapter; never the head; PEFT's `target_modules` instead names them",
    )

    @model_validator(mode="after")
    def _checked(self) -> Peft:
        config_class = config_of(self.type)
        for name, value in (self.model_extra or {}).items():
            if reason := next((why for start, why in STARTS.items() if _starts(name, value, start)), None):
                raise ValueError(f"{name}={value!r} cannot be used: {reason}")
            checked(config_class, name, value)
        if self.targets != "all" and (self.type in OWN_TARGETS or "target_modules" in (self.model_extra or {})):
            raise ValueError(
                f"targets={self.targets!r} has no meaning here: type {self.type} or target_modules decides"
            )
        return self

    def linear_layers(self, model: PreTrainedModel) -> list[str] | None:
        named = self.type in OWN_TARGETS or {"target_modules", "target_parameters"} & (self.model_extra or {}).keys()
        return None if named else self._linear(model)

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        try:
            return self._adapted(model, context)
        except ConfigError:
            raise
        except Exception as error:  # PEFT raises errors of many kinds for a size or a model that a type cannot have
            if isinstance(error, NotImplementedError) and model.device.type == "meta":
                raise ConfigError(
                    f"peft: type {self.type!r} reads the base's weights, so it cannot be planned"
                ) from error
            raise ConfigError(f"peft: type {self.type!r} cannot adapt this model: {error}") from error

    def _adapted(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        from peft import get_peft_model

        base = probe(model)
        with context.precision.autocast():
            as_run = probe(model)
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)
            adapted: PreTrainedModel = get_peft_model(model, self._config(model))
        compute_as_base(adapted)
        if not base.is_meta:  # `control-llm plan` has no values
            self._check_start(adapted, base)
            with context.precision.autocast():
                self._say_rounding(_apart(adapted, as_run), context.precision)
        _check_tied(adapted)
        _check_merge(adapted)
        return adapted

    def _linear(self, model: PreTrainedModel) -> list[str]:
        return (lora_names if self.type in LIKE_LORA else linear_names)(model, self.targets)

    def _config(self, model: PreTrainedModel) -> Any:
        config_class, targets = config_of(self.type), {}
        if self.type not in OWN_TARGETS:
            names = self._linear(model)
            if "layers_to_transform" in (self.model_extra or {}):  # which PEFT does not read for whole names
                names = [name.partition(".")[2] for name in names]
            targets = {"target_modules": names}
        self._check_names(model)
        given = {name: checked(config_class, name, value) for name, value in (self.model_extra or {}).items()}
        return config_class(**{"task_type": "CAUSAL_LM", **targets, **given})

    def _check_names(self, model: PreTrainedModel) -> None:
        """Raise ConfigError for modules and layers that the model does not have: PEFT passes over them."""
        names, extra = [name for name, _ in model.named_modules()], self.model_extra or {}
        for field, before in (("modules_to_save", ""), ("target_modules", "."), ("exclude_modules", ".")):
            given = extra.get(field) or ()
            wanted = () if isinstance(given, str) else given  # a pattern, or all-linear
            if lacking := [one for one in wanted if not any(f".{name}".endswith(before + one) for name in names)]:
                known = sorted({name.rpartition(".")[2] for name in names} - {""})
                raise ConfigError(f"peft: {field}: no module is called {lacking[0]!r}: {nearest(lacking[0], known)}")
        held = [name for name, _ in model.named_parameters()]
        for one in extra.get("target_parameters") or ():
            if not any(f".{name}".endswith(f".{one}") for name in held):
                known = sorted({".".join(name.split(".")[-2:]) for name in held})
                raise ConfigError(f"peft: target_parameters: no parameter is called {one!r}: {nearest(one, known)}")
        for field in ("rank_pattern", "alpha_pattern"):
            for key in extra.get(field) or {}:
                if not any(re.match(rf"(?:.*\.)?(?:{key})$", name) for name in names):  # as PEFT looks for it
                    known = sorted({name.rpartition(".")[2] for name in names} - {""})
                    raise ConfigError(f"peft: {field}: no module is called {key!r}: {nearest(key, known)}")
        count, layers = len(decoder_layers(model)), extra.get("layers_to_transform")
        for layer in [layers] if isinstance(layers, int) else layers or ():
            if not 0 <= layer < count:
                raise ConfigError(f"peft: layers_to_transform={layer}: the model has {count} layers, 0 to {count - 1}")

    def _check_start(self, model: Any, base: Tensor) -> None:
        """Raise ConfigError if the model does not start as the base, or if the base cannot be had from it again."""
        if (difference := _apart(model, base)) > ROUNDING:
            raise ConfigError(
                f"peft: type {self.type!r} does not start as the base model with these fields (its logits differ by "
                f"{difference:.1g} of the largest one): look for a field such as init_weights that starts it at zero"
            )
        with model.disable_adapter():
            if has_base(model) and _apart(model, base) > AGAIN:
                raise ConfigError(f"peft: type {self.type!r} changes the base's weights, and they do not come back")

    def _say_rounding(self, difference: float, precision: Precision) -> None:
        """Warn if arithmetic alone takes the start away from the base: it is in each figure of the arm."""
        if precision.bf16 and difference:
            warnings.warn(
                f"peft: type {self.type!r} with these fields starts as the base model up to rounding: in bf16 its "
                f"logits differ by {difference:.1g} of the largest one, so its KL to the base does not start at 0. "
                "precision: fp32 keeps that small",
                stacklevel=2,
            )


def _starts(name: str, value: Any, start: str) -> bool:
    return name == "init_lora_weights" and str(value).lower().startswith(start)


def config_of(name: str) -> Any:
    """Return PEFT's config class of a type. Raises ValueError for one that is unknown, or that cannot be used."""
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {str(kind.value).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if name not in known:
        raise ValueError(f"unknown type {name!r} of the installed PEFT: {nearest(name, known)}")
    reason = REFUSED.get(name)
    if issubclass(known[name], PromptLearningConfig) or name == "adaption_prompt":
        reason = "it puts tokens of its own before the text, and changes no weights that could be merged"
    if reason:
        raise ValueError(f"type {name!r} cannot be used: {reason}")
    return known[name]


def checked(config_class: Any, name: str, value: Any) -> Any:
    """Return a field's value in the type that PEFT declares for it. Raises ValueError."""
    if name in OWN:
        raise ValueError(f"{name} is set by the bench: {OWN[name]}")
    declared = {field.name for field in dataclasses.fields(config_class)} - OWN.keys()
    if name in IDLE and name in declared:
        raise ValueError(f"{name} has no effect here: it is for layers of another library")
    if name not in declared:
        raise ValueError(f"unknown field {name!r} of {config_class.__name__}: {nearest(name, declared)}")
    annotation: TypeAdapter[Any] = TypeAdapter(get_type_hints(config_class)[name])
    try:
        return annotation.validate_json(json.dumps(value), strict=True)
    except (TypeError, ValidationError):
        wanted = next(field.type for field in dataclasses.fields(config_class) if field.name == name)
        raise ValueError(f"{name}={value!r}: {config_class.__name__} wants {wanted}") from None


@torch.no_grad()
def probe(model: Any) -> Tensor:
    """Return the logits of a short text without dropout: (1, PROBE, vocabulary)."""
    ids = torch.arange(PROBE, device=model.device)[None]
    training = model.training
    model.eval()
    logits: Tensor = model(input_ids=ids).logits
    model.train(training)
    return logits.float()


def _apart(model: Any, base: Tensor) -> float:
    """Return the largest difference of a model's logits from the base's, as a share of the largest one."""
    return float((probe(model) - base).abs().max() / base.abs().max())


def _check_tied(model: Any) -> None:
    """Raise ConfigError for an adapter that could not be merged, see `tied_modules`."""
    if tied := tied_modules(model):
        raise ConfigError(
            f"peft: target_modules: {tied[0].rpartition('.')[2]} shares its weight with another layer (tied "
            "embeddings), and an adapter on one of them could not be merged: leave it out, or train it whole by "
            "modules_to_save"
        )


def _check_merge(model: Any) -> None:
    """Raise what PEFT raises if an adapter cannot be merged: posthoc operations and the size of updates need it."""
    for module in model.modules():
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            copy.deepcopy(module).merge()
            return
