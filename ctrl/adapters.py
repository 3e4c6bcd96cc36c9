"""Find the adapters that PEFT has put on a model, those that are active, and note them on an expanded one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from ctrl.errors import ConfigError, warn
from ctrl.layer import expanded_layers
from ctrl.precision import HalfComputing


def peft_adapter(model: nn.Module, skip: Collection[nn.Module] = ()) -> str | None:
    """Return the name of the first module with a PEFT adapter, or the class of PEFT's wrapper; None without any."""
    if type(model).__module__.partition(".")[0] == "peft":
        return type(model).__name__
    for name, module in model.named_modules():
        wrapped = (getattr(module, inner, None) for inner in ("base_layer", "original_module"))
        if module not in skip and any(isinstance(inner, nn.Module) for inner in wrapped):
            return name
    return None


def active_adapter(model: nn.Module) -> str | None:
    """Return the name of the first module outside of the copies whose PEFT adapter is active; None without any.

    Of prompts that PEFT puts in front of the tokens it is the wrapper's class.
    """
    prompts = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    if prompts and "forward" not in vars(model):  # disable_adapter sets one
        return type(model).__name__
    adapted = {name: module for name, module in model.named_modules() if "base_layer" in module._modules}
    if not adapted:  # as most often: a training with a reference asks at each step
        return None
    own = {module for layer in expanded_layers(model) for module in layer.expanded.modules()}
    for name, module in adapted.items():
        on = getattr(module, "active_adapters", None) and not getattr(module, "disable_adapters", False)
        if on and module not in own:
            return name
    return None


def refuse_on_copies(model: Any) -> None:
    """Raise ConfigError for adapters that PEFT has put onto an expanded model and that its copies cannot hold."""
    if model.control.config.expanded == "lora":
        raise ConfigError(
            "PEFT takes the adapters of these low-rank copies for its own and has changed them: load the model "
            "again (ctrl.load) and train the copies alone, or expand with expanded='full' and put adapters on that"
        )
    copies = [layer.expanded for layer in expanded_layers(model) if isinstance(layer.expanded, HalfComputing)]
    if any(hasattr(module, "parameter_name") for copied in copies for module in copied.modules()):
        raise ConfigError(
            "PEFT's target_parameters replaces a weight of a copy in each pass, but copies over a base in bf16 or "
            "fp16 read theirs rounded: load the model again, and use target_modules or name weights outside of "
            "the copies, or expand with copies_dtype='base'"
        )


class HoldsAdapters(nn.Module):
    """Mixin of an expanded model: PEFT may put adapters on it, with a warning, and takes them off again."""

    control: Any

    @property
    def peft_config(self) -> Any:
        """PEFT's own attribute, which it sets on a model that it puts adapters on.

        It asks for it before it freezes the model, and sets it afterwards: what trains is noted at the question.
        """
        if "peft_config" not in vars(self):
            self.control.before_peft = {name for name, p in self.named_parameters() if p.requires_grad}
            raise AttributeError("peft_config")
        return vars(self)["peft_config"]

    @peft_config.setter
    def peft_config(self, value: Any) -> None:
        refuse_on_copies(self)
        if "peft_config" not in vars(self):
            warn(
                "PEFT freezes the copies of this expanded model until its adapters are merged or unloaded, and its "
                "save_pretrained writes adapters alone: loaded onto the plain base these are another model. Keep the "
                "copies too: ctrl.save before get_peft_model (then load both: ctrl.load, PeftModel.from_pretrained), "
                "or merge_and_unload() and then ctrl.save",
                stacklevel=4,
            )
        vars(self)["peft_config"] = value

    @peft_config.deleter
    def peft_config(self) -> None:
        """PEFT deletes it with the last adapter (merged, unloaded or deleted): what trained before trains again.

        Nothing did if `prepare_model_for_kbit_training` had frozen all of it: then the copies train again.
        """
        del vars(self)["peft_config"]
        trained = self.control.before_peft or self.control.trained
        for name, parameter in self.named_parameters():
            if name.replace(".base_layer", "") in trained:
                parameter.requires_grad_(True)
