"""Keep keys and values of prompts in the dtype in which attention reads them, and read no more rows than fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ctrl.layer import expanded_layers

CASTS = ("sdpa", "eager")  # attention whose products autocast computes, and casts both sides of
SHARE = 0.8  # of the free memory of a GPU that keys, values and logits may take
CHANGING = 3  # tensors of the size of the last layer's keys and values while rows are appended, for each layer's one

Result = TypeVar("Result")


class KeyValues(DynamicCache):
    """A cache of keys and values. Under autocast it holds them in bf16: half of fp32's bytes, and the same logits.

    Position embeddings are multiplied in fp32, so keys arrive in it; attention would round them at each product.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(config=model.config)
        self.narrow = model.config._attn_implementation in CASTS

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values as the base class does."""
        kind = key_states.device.type
        if self.narrow and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        return super().update(key_states, value_states, *args, **kwargs)


def row_bytes(model: PreTrainedModel, tokens: int, size: int) -> float:
    """Return the bytes of keys and values of one row, and of its last logits in fp32 twice. size: bytes of a number."""
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers + len(expanded_layers(model))
    return float(2 * (layers + CHANGING) * heads * width * tokens * size + 2 * 4 * config.vocab_size)


def rows_that_fit(model: PreTrainedModel, tokens: int, most: int) -> int:
    """Return how many rows of `tokens` tokens fit into the free memory of the model's GPU: at least 1, at most `most`.

    On a CPU it is `most`, since what is free there is not known.
    """
    if model.device.type != "cuda":
        return most
    size = 2 if torch.is_autocast_enabled("cuda") else model.dtype.itemsize
    return max(1, min(most, int(SHARE * free_bytes(model.device) / row_bytes(model, tokens, size))))


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a GPU that new tensors can have: what the driver has free, and what torch holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def in_parts(
    write: Callable[[Sequence[int]], list[Result]], rows: Sequence[int], model: PreTrainedModel, tokens: int
) -> list[Result]:
    """Return the results of rows, in parts that fit into memory. tokens: the most that a row has at its end."""
    size = rows_that_fit(model, tokens, len(rows))
    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    return [result for part in parts for result in in_halves(write, part)]


def in_halves(write: Callable[[Sequence[int]], list[Result]], rows: Sequence[int]) -> list[Result]:
    """Return the results of rows: of all at once, or of each half if these need more memory than a GPU has.

    Raises OutOfMemoryError if one row does not fit.
    """
    try:
        return write(rows)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    torch.cuda.empty_cache()  # here the error is gone, and with it the tensors of its frames
    half = len(rows) // 2
    return in_halves(write, rows[:half]) + in_halves(write, rows[half:])
