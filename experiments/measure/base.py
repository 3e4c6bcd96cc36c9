"""The base model of a measurement, before it is loaded, and the facts that models of it share with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from experiments.common.errors import ConfigError
from experiments.common.files import read_note
from experiments.measure.files import CONFIG
from experiments.models.base import load_model
from experiments.models.precision import DTYPES, device

FACTS = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")  # of `ctrl.facts.base_facts`


@dataclass(frozen=True)
class Base:
    """The base model before it is loaded.

    name: as given. folder: of its files. allow_other: load what was trained on another base of the same shapes too.
    loading: arguments of `load_model`, for the models too.
    """

    name: str
    folder: Path
    allow_other: bool = False
    loading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def remote_code(self) -> bool:
        return bool(self.loading.get("remote_code"))

    @property
    def facts(self) -> dict[str, Any]:
        return whole_facts(self.folder, self.remote_code)

    def load(self, folder: Path | None = None) -> PreTrainedModel:
        """Load the base, or a whole model in another folder in the same way."""
        return load_model(str(folder or self.folder), **self.loading)

    def skeleton(self) -> PreTrainedModel:
        """Build the model without its weights."""
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.remote_code)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=self.remote_code)
        return model

    def place(self, model: PreTrainedModel) -> PreTrainedModel:
        """Move a model that was built elsewhere to the device, and to the dtype."""
        where, dtype = self.loading.get("device_map") or device(), DTYPES[self.loading.get("dtype", "fp32")]
        return model.to(device=where, dtype=dtype)  # type: ignore[call-arg]  # its decorator hides the signature


def whole_facts(folder: Path, remote_code: bool = False) -> dict[str, Any]:
    """Return the FACTS of a model's config. Raises ConfigError if transformers cannot read it."""
    if not remote_code and read_note(folder / CONFIG).get("auto_map"):
        raise ConfigError(
            f"{folder} brings Python files of its own (auto_map in its {CONFIG}), which are not run: read them, then "
            "add --trust-remote-code"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"{folder / CONFIG} is not the config of a model: {error}") from error
    text = config.get_text_config(decoder=True)
    return {"model_type": config.model_type} | {name: getattr(text, name, None) for name in FACTS[1:]}
