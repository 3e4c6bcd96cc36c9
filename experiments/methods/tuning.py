"""What trains: all weights, some layers, copies beside some layers (Control LLM), or low-rank adapters (PEFT)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from transformers import PreTrainedModel

import ctrl
from ctrl.sharded import write_once
from ctrl.structure import decoder_layers, is_attention, place
from experiments.methods.base import Batch, Method, Setting


class Full(Method):
    """All weights. With `replay` in the arm it is experience replay."""

    def prepare(self, model: PreTrainedModel, setting: Setting) -> PreTrainedModel:
        model.requires_grad_(True)
        return model


class Partial(Method):
    """The layers that Control LLM would expand (`control.layers`), tuned in place."""

    def prepare(self, model: PreTrainedModel, setting: Setting) -> PreTrainedModel:
        layers = decoder_layers(model)
        model.requires_grad_(False)
        for index in place(setting.arm.control.layers, len(layers)):
            layers[index].requires_grad_(True)
        return model

    @property
    def places_layers(self) -> bool:
        return True


class Control(Method):
    """Control LLM: frozen pretrained layers, trainable copies beside some of them (`control`)."""

    structure: ClassVar[str | None] = None  # a method of that name fixes it in the arm's `control`

    def prepare(self, model: PreTrainedModel, setting: Setting) -> PreTrainedModel:
        return ctrl.expand(model, setting.arm.control)

    @property
    def places_layers(self) -> bool:
        return True


class Stack(Control):
    """LLaMA Pro (arXiv 2401.02415): trainable copies behind some layers, the identity at the start."""

    structure: ClassVar[str | None] = "stack"


class Hybrid(Control):
    """The chosen places alternate stack and concat."""

    structure: ClassVar[str | None] = "hybrid"


class Lora(Method):
    """Low-rank adapters (arXiv 2106.09685): W + scale * B A, A random, B = 0; scale = alpha / rank."""

    scale_by_root: ClassVar[bool] = False
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all", "mlp"] = Field("all", description="linear layers that get an adapter; never the head")

    def prepare(self, model: PreTrainedModel, setting: Setting) -> PreTrainedModel:
        return self._adapted(model, setting)

    def _adapted(self, model: PreTrainedModel, setting: Setting, **settings: Any) -> PreTrainedModel:
        from peft import get_peft_model

        with torch.random.fork_rng():
            torch.manual_seed(setting.seed)  # A is random
            return get_peft_model(model, self._config(model, **settings))

    def _config(self, model: PreTrainedModel, **settings: Any) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self.dropout,
            use_rslora=self.scale_by_root,
            target_modules=linear_names(model, self.targets),
            **settings,
        )


class Rslora(Lora):
    """Lora with scale = alpha / sqrt(rank) (arXiv 2312.03732)."""

    scale_by_root: ClassVar[bool] = True


class Corda(Lora):
    """CorDA, knowledge-preserved (arXiv 2406.05223): adapters start as the directions of W that old text uses least.

    W C = U S V^T with C the covariance of the layer's inputs on old text; the smallest `rank` singular directions
    move from W into B A, the rest stays frozen. At the start the model computes what the base does, up to rounding.
    """

    batches: int = Field(4, ge=1, description="batches of old text that C is measured on")
    _start: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def prepare(self, model: PreTrainedModel, setting: Setting) -> PreTrainedModel:
        from peft import get_peft_model_state_dict
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda

        rows = list(single_rows(setting.old(self.batches), model.device))

        def run() -> None:
            with setting.precision.autocast():
                for row in rows:
                    model(**{k: v for k, v in row.items() if k != "labels"})

        settings = {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="kpm")}
        preprocess_corda(model, self._config(model, **settings), run_model=run)
        adapted = self._adapted(model, setting, **settings)
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        self._start = {name: t.detach().clone() for name, t in state.items()}
        return adapted

    def save(self, model: PreTrainedModel, folder: Path) -> Path:
        """As a plain adapter of the unchanged base: B A - B_0 A_0 = [B, -B_0] [A; A_0], of twice the rank."""
        from peft import LoraConfig, get_peft_model_state_dict
        from safetensors.torch import save_file

        def joined(name: str, now: Tensor) -> Tensor:
            start = self._start[name].to(now.device)
            return torch.cat([now, start]) if "lora_A" in name else torch.cat([now, -start], dim=1)

        config: Any = model.peft_config["default"]
        plain = LoraConfig(
            task_type="CAUSAL_LM",
            r=2 * self.rank,
            lora_alpha=2 * self.alpha,  # type: ignore[arg-type]
            target_modules=config.target_modules,
            base_model_name_or_path=config.base_model_name_or_path,
            inference_mode=True,
        )

        def write(tensors: dict[str, Tensor]) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            both = {name: joined(name, now) for name, now in tensors.items()}
            save_file(both, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            plain.save_pretrained(str(folder))

        write_once(get_peft_model_state_dict(model, save_embedding_layers=False), write)
        return folder


def linear_names(model: PreTrainedModel, targets: str) -> list[str]:
    """Full names of the linear layers in decoder layers: `all`, or `mlp`, those outside of attention."""
    from transformers.pytorch_utils import Conv1D

    linear = {id(m) for layer in decoder_layers(model) for m in layer.modules() if isinstance(m, nn.Linear | Conv1D)}
    attention = {id(m) for a in model.modules() if is_attention(a) for m in a.modules()} if targets == "mlp" else set()
    return [name for name, m in model.named_modules() if id(m) in linear and id(m) not in attention]


def single_rows(batches: list[Batch], device: torch.device) -> Iterator[dict[str, Any]]:
    """Rows one at a time, (1, seq), without padding, on the device; what is no tensor passes through."""
    for batch in batches:
        for i in range(len(batch["input_ids"])):
            mask = batch["attention_mask"][i].bool() if "attention_mask" in batch else slice(None)
            row = {k: v[i : i + 1, mask].to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            row.pop("attention_mask", None)
            yield row
