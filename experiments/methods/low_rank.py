"""Train low-rank adapters next to frozen weights (PEFT)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from ctrl.config import MAX_RANK
from ctrl.copies import takes_lora
from ctrl.sharded import write_once
from ctrl.structure import decoder_layers, is_attention
from experiments.methods.base import MethodContext, Tuning
from experiments.methods.batches import single_rows
from experiments.models.precision import compute_as_base, is_linear


class Lora(Tuning):
    """Train low-rank adapters (arXiv 2106.09685): W + scale * B A with A random and B = 0; scale = alpha / rank."""

    adapts: ClassVar[bool] = True
    scale_by_root: ClassVar[bool] = False
    by_direction: ClassVar[bool] = False
    rank: int = Field(8, ge=1, le=MAX_RANK, description="rank of the adapters")
    alpha: float = Field(16.0, gt=0, description="numerator of the adapters' scale (not the alpha of an interpolation)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapters")
    targets: Literal["all", "mlp"] = Field("all", description="linear layers that get an adapter; never the head")

    def linear_layers(self, model: PreTrainedModel) -> list[str] | None:
        return lora_names(model, self.targets)

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        return self._adapted(model, context)

    def _adapted(self, model: PreTrainedModel, context: MethodContext, **settings: Any) -> PreTrainedModel:
        from peft import get_peft_model

        with torch.random.fork_rng():
            torch.manual_seed(context.seed)  # A is random
            adapted: PreTrainedModel = get_peft_model(model, self._config(model, **settings))
        compute_as_base(adapted)
        return adapted

    def _config(self, model: PreTrainedModel, **settings: Any) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number works
            lora_dropout=self.dropout,
            use_rslora=self.scale_by_root,
            use_dora=self.by_direction,
            target_modules=lora_names(model, self.targets),
            **settings,
        )


class Rslora(Lora):
    """Lora with scale = alpha / sqrt(rank) (arXiv 2312.03732)."""

    scale_by_root: ClassVar[bool] = True


class Dora(Lora):
    """Train length and direction of weights apart: m (W + s B A) / |W + s B A| (DoRA, arXiv 2402.09353).

    |.|: the length of each output's row. m starts as the rows' lengths of W and trains too. s = alpha / rank.
    """

    by_direction: ClassVar[bool] = True


class Corda(Lora):
    """Train adapters that start as the directions of W which old text uses least (CorDA, arXiv 2406.05223).

    W C = U S V^T with C the covariance of the layer's inputs on old text; the smallest `rank` singular directions
    move from W into B A, the rest stays frozen (the paper's knowledge-preserved mode). At the start the model computes
    what the base does, up to rounding.
    """

    reads_old: ClassVar[bool] = True
    batches: int = Field(4, ge=1, le=10**5, description="batches of old text that C is measured on")

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        from peft import get_peft_model_state_dict
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda

        rows = list(single_rows(context.old(self.batches), model.device))

        def run() -> None:
            with context.precision.autocast():
                for row in rows:
                    model(**{k: v for k, v in row.items() if k != "labels"})

        settings = {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="kpm")}
        preprocess_corda(model, self._config(model, **settings), run_model=run)
        adapted: Any = self._adapted(model, context, **settings)
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        adapted.corda_start = {name: t.detach().clone() for name, t in state.items()}  # for `save`
        return adapted

    def save(self, model: PreTrainedModel, folder: Path) -> Path:
        """Write a plain adapter of the unchanged base: B A - B_0 A_0 = [B, -B_0] [A; A_0], of twice the rank.

        model: one that `prepare` returned, which holds B_0 and A_0.
        """
        from peft import LoraConfig, get_peft_model_state_dict
        from safetensors.torch import save_file

        starts: Any = model.corda_start

        def joined(name: str, now: Tensor) -> Tensor:
            start = starts[name].to(now.device)
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
    """List the full names of linear layers in decoder layers. targets: `all`, or `mlp` for those outside attention."""
    linear = {id(m) for layer in decoder_layers(model) for m in layer.modules() if is_linear(m)}
    attention = {id(m) for a in model.modules() if is_attention(a) for m in a.modules()} if targets == "mlp" else set()
    return [name for name, m in model.named_modules() if id(m) in linear and id(m) not in attention]


def lora_names(model: PreTrainedModel, targets: str) -> list[str]:
    """List `linear_names` without those that PEFT refuses to put low-rank adapters on."""
    return [name for name in linear_names(model, targets) if takes_lora(model, name)]


def not_linear(model: PreTrainedModel) -> tuple[float, list[str]]:
    """Return the share of the layers' weights in matrices of no linear layer (stacked experts), and their names."""
    owned = [(name, m) for layer in decoder_layers(model) for name, m in layer.named_modules()]
    named = [(f"{name}.{n}", p, m) for name, m in owned for n, p in m.named_parameters(recurse=False)]
    other = [(name, p) for name, p, m in named if p.dim() > 1 and not is_linear(m)]
    whole = sum(p.numel() for _, p, _ in named)
    return sum(p.numel() for _, p in other) / whole, list(dict.fromkeys(name for name, _ in other))
