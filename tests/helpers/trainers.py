"""Trainers of other libraries on tiny models: transformers' with autocast, accelerate's, TRL's, and a fused head.

Each takes an expanded model and trains it in place for a few steps on `tests.helpers.tiny_llama.sequences`.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from tests.helpers.tiny_llama import expanded, sequences, tiny

Loss = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
STEPS = 3
COMMON: dict[str, Any] = {
    "max_steps": STEPS, "learning_rate": 1e-2, "use_cpu": True, "report_to": [], "save_strategy": "no", "seed": 3,
    "logging_steps": 1, "disable_tqdm": True, "max_grad_norm": 1e9, "per_device_train_batch_size": 8,
}  # fmt: skip


def hf_trainer(model: Any, folder: Path, **settings: Any) -> Trainer:
    """transformers' Trainer on all sequences in one batch."""
    args = TrainingArguments(str(folder), **{**COMMON, **settings})
    return Trainer(model, args, train_dataset=sequences())  # type: ignore[arg-type]


def sft_trainer(model: Any, folder: Path, rows: list[dict[str, Any]] | None = None, **settings: Any) -> Any:
    """TRL's SFTTrainer on the same sequences without their padding, which it adds itself."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    defaults = {"bf16": False, "gradient_checkpointing": False, "max_length": None}
    args = trl.SFTConfig(str(folder), **{**COMMON, **defaults, **settings})
    data = Dataset.from_list(unpadded() if rows is None else rows)
    return trl.SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer())


def dpo_trainer(model: Any, folder: Path, reference: Any, **settings: Any) -> Any:
    """TRL's DPOTrainer on four pairs of unlike length."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    defaults = {"bf16": False, "gradient_checkpointing": False, "max_length": None}
    args = trl.DPOConfig(str(folder), **{**COMMON, "per_device_train_batch_size": 4, **defaults, **settings})
    data = Dataset.from_list(preferences())
    return trl.DPOTrainer(model, reference, args, train_dataset=data, processing_class=tokenizer())


def unpadded() -> list[dict[str, list[int]]]:
    """The sequences as lists, without their padding."""
    rows = [(row, int(row["attention_mask"].sum())) for row in sequences()]
    return [{name: row[name][:length].tolist() for name in ("input_ids", "labels")} for row, length in rows]


def completions() -> list[dict[str, list[int]]]:
    """The sequences in two parts, of which SFTTrainer trains the second alone."""
    rows = [row["input_ids"] for row in unpadded()]
    return [{"input_ids": ids, "completion_mask": [int(at > 2) for at in range(len(ids))]} for ids in rows]


def preferences() -> list[dict[str, str]]:
    """Four rows of a prompt, a chosen and a rejected answer, each in words of `tokenizer`."""
    texts = [[f"w{token}" for token in row["input_ids"]] for row in unpadded()[:4]]
    return [
        {"prompt": " ".join(words[:3]), "chosen": " " + " ".join(words[3:]), "rejected": " " + " ".join(words[:2:-2])}
        for words in texts
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word w0 ... w95."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w1", eos_token="w2")


def whole_batch() -> dict[str, torch.Tensor]:
    """All sequences as one batch."""
    return {name: torch.stack([row[name] for row in sequences()]) for name in sequences()[0]}


def own_loop(model: Any, loss: Loss, prepare: Callable[..., Any] = lambda *parts: parts) -> list[float]:
    """Train in a plain loop and return the losses. prepare: wraps model and optimizer, as accelerate's does."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapped, optimizer = prepare(model, torch.optim.SGD(trained, 1e-2))
    losses = []
    for _ in range(STEPS):
        value = loss(wrapped, whole_batch())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def own_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's own loss."""
    loss: torch.Tensor = model(**batch).loss
    return loss


def head_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy from the decoder and the head, called one after the other: the model's forward does not run."""
    hidden = model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    logits, labels = model.lm_head(hidden)[:, :-1], batch["labels"][:, 1:]
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def fuse_head(model: Any) -> None:
    """Set a forward on the instance, as TRL's `add_fused_lm_head` and Liger do: it runs decoder and head itself."""
    original = model.forward

    def forward(self: Any, *args: Any, fused: bool = False, **kwargs: Any) -> Any:
        return head_loss(self, kwargs) if fused else original(*args, **kwargs)

    model.forward = types.MethodType(forward, model)


def fused() -> Any:
    """An expanded model with `fuse_head`."""
    model = expanded()
    fuse_head(model)
    return model


def fused_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a model with `fuse_head`."""
    loss: torch.Tensor = model(**batch, fused=True)
    return loss


def accelerated(**settings: Any) -> Callable[..., Any]:
    """accelerate's `prepare` on this CPU, for `own_loop`."""
    return Accelerator(cpu=True, **settings).prepare


def logits_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of the logits, though the model gets the labels and computes its own loss."""
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


LOSSES: dict[str, Loss] = {"head": head_loss, "fused": fused_loss, "logits": logits_loss}  # without the divergence


def grpo_trainer(model: Any, folder: Path, **settings: Any) -> Any:
    """TRL's GRPOTrainer. Its sampling is replaced: the completions are those of `sequences`, with fixed advantages."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    defaults = {"bf16": False, "gradient_checkpointing": False, "num_generations": 2, "max_completion_length": 12}
    args = trl.GRPOConfig(str(folder), **{**COMMON, **defaults, **settings})
    trainer = trl.GRPOTrainer(
        model,
        lambda completions, **_: [0.0] * len(completions),
        args,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in preferences()] * 4),
        processing_class=tokenizer(),
    )
    ids, mask = (whole_batch()[name] for name in ("input_ids", "attention_mask"))
    trainer._generate_and_score_completions = lambda _: {
        "prompt_ids": ids[:, :5], "prompt_mask": mask[:, :5], "completion_ids": ids[:, 5:],
        "completion_mask": mask[:, 5:], "advantages": torch.linspace(-1, 1, len(ids)),
        "num_items_in_batch": mask[:, 5:].sum(),
    }  # fmt: skip
    return trainer


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Copy the trainable weights of a model."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def losses(trainer: Any) -> list[float]:
    """Train, and list the losses that were logged."""
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


TRAINERS: dict[str, Callable[[Any, Path], Any]] = {
    "SFT": sft_trainer,
    "SFT, packed": lambda model, folder: sft_trainer(model, folder, packing=True, max_length=32, eval_packing=False),
    "SFT, completions": lambda model, folder: sft_trainer(model, folder, completions(), completion_only_loss=True),
    "DPO": lambda model, folder: dpo_trainer(model, folder, tiny()),
    "GRPO": grpo_trainer,
    "label smoothing": lambda model, folder: hf_trainer(model, folder, label_smoothing_factor=0.1),
}
