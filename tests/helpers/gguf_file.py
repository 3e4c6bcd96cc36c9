"""Convert a folder with a Llama model to a GGUF file by the tools of the package gguf: names, vocabulary, writer.

It does what llama.cpp's own script does for such a model, which is in no package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig

PRE = "smollm"  # how the shipped model's tokenizer cuts text into words, by llama.cpp's name


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Order the rows of a query or key matrix as llama.cpp rotates them: in pairs, instead of two halves."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def to_gguf(folder: Path, file: Path) -> Path:
    """Write the weights in fp32, the sizes and the tokenizer with its chat template."""
    config = LlamaConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    _add_words(writer, folder, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
                name.split(".")[-2]
            )
            weight = tensor.float() if heads is None else interleaved(tensor.float(), heads)
            writer.add_tensor(str(names.get_name(name, (".weight", ".bias"))), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_words(writer: Any, folder: Path, size: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = {i: word for word, i in tokenizer.get_vocab().items()}
    kinds = [
        gguf.TokenType.UNUSED if i not in words else gguf.TokenType.CONTROL if i in added else gguf.TokenType.NORMAL
        for i in range(size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE)
    writer.add_token_list([words.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer)
