"""Models of every kind next to a tiny base, for `control-llm measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from experiments.measure.models import Model, read_base, read_models
from experiments.measure.tokenizers import load_tokenizer
from tests.helpers.byte_level import byte_base, byte_llama, byte_tokenizer

SMALL = {
    "kept.items": 4,
    "drift.replies": 2,
    "drift.reply_tokens": 4,
    "text.tokens": 128,
    "instructions.items": 1,
    "bootstrap": 100,
}
VOCABULARY = 260  # of byte_tokenizer


def tiny_model(noise: float = 0.0, vocabulary: int = VOCABULARY, **changes: Any) -> PreTrainedModel:
    """The base; with noise, one layer's weights are others."""
    return disturb(byte_llama(vocabulary, **changes), noise, "layers.0.")


def disturb(model: Any, noise: float, part: str) -> Any:
    """Add noise to the parameters whose names contain `part`."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.add_(noise * torch.randn_like(parameter))
    return model


def model_folder(folder: Path, noise: float = 0.0, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    return byte_base(folder, tokenizer or byte_tokenizer(), tiny_model(noise))


def adapter_folder(folder: Path, base: str, noise: float = 0.3) -> str:
    """An adapter as PEFT writes it."""
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = tiny_model()
    model.name_or_path = base
    disturb(get_peft_model(model, config), noise, "lora_").save_pretrained(folder)
    return str(folder)


def expansion_folder(folder: Path, noise: float = 0.3) -> str:
    """What `ctrl.save` writes."""
    model = ctrl.expand(tiny_model().eval(), ctrl.ControlConfig(layers=1))
    ctrl.save(disturb(model, noise, ".expanded."), folder)
    return str(folder)


def published_folder(folder: Path, noise: float = 0.3) -> str:
    """The same expansion in the layout of the published Control LLM checkpoints."""
    model = ctrl.expand(tiny_model().eval(), ctrl.ControlConfig(layers=1))
    ctrl.export_published(disturb(model, noise, ".expanded."), folder)
    return str(folder)


def training_folder(folder: Path) -> str:
    """A training run as Trainer leaves it: two checkpoints, each further away, with the tokenizer above them."""
    for step, noise in ((10, 0.02), (20, 0.2)):
        tiny_model(noise).save_pretrained(folder / f"checkpoint-{step}")
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def other_tokenizer_folder(folder: Path) -> str:
    """A model whose token ids are others: one more special token in front would move all; here two are exchanged."""
    tokenizer = byte_tokenizer()
    exchanged = tokenizer.backend_tokenizer.to_str().replace('"!":0', '"!":1').replace('"\\"":1', '"\\"":0')
    byte_base(folder, tokenizer, tiny_model())
    (folder / "tokenizer.json").write_text(exchanged)
    return str(folder)


def resized_folder(folder: Path) -> str:
    """The base with one token more, and so one more row in its embedding and its head."""
    model = tiny_model()
    model.resize_token_embeddings(VOCABULARY + 1, mean_resizing=False)
    return byte_base(folder, byte_tokenizer(extra=("<think>",)), model)


def other_family_folder(folder: Path) -> str:
    """A GPT-2 with the base's tokenizer."""
    torch.manual_seed(3)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=256, eos_token_id=259, **shape))
    return byte_base(folder, byte_tokenizer(), model)


def read(base: str, *addresses: str, **options: Any) -> list[Model]:
    """The models at these addresses, with the base's tokenizer."""
    found = read_base(base, **options)
    return read_models(addresses, found, load_tokenizer(found.folder))
