"""Prompts read once with their keys and values kept, for the replies behind them.

What all prompts start with (the system turn, the words of a question) is read once for all of them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from experiments.models.tokens import pad

PAYS = 64  # tokens that a pass of the model of its own must save: each pass reads all weights


class Prefix:
    """The tokens that all prompts start with, and the cache after them; each prompt keeps at least one of its own."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.tokens = tuple(prompts[0][: _shared_length(prompts)]) if prompts else ()
        self.cache = DynamicCache(config=model.config)
        if self.tokens:
            ids = torch.tensor([self.tokens], device=model.device)
            model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)


class Prompts:
    """A batch of prompts behind a prefix: [prefix, padding, own tokens], later tokens to the right.

    logits: (prompts, vocabulary), for the token behind each prompt.
    """

    def __init__(self, model: PreTrainedModel, batch: Sequence[Sequence[int]], prefix: Prefix) -> None:
        self.model, shared = model, len(prefix.tokens)
        own = [prompt[shared:] for prompt in batch]
        self.cache = copy.deepcopy(prefix.cache)
        if shared:
            self.cache.batch_repeat_interleave(len(batch))
        self.mask = torch.ones(len(batch), shared, dtype=torch.int64)
        self.logits = self.read(pad(own, 0, left=True), pad([[1] * len(row) for row in own], 0, left=True))

    def read(self, ids: Tensor, real: Tensor) -> Tensor:
        """Append ids (rows, new); real: 1 where a token is none of padding. Returns logits (rows, vocab).

        Positions are counted without padding.
        """
        self.mask = torch.cat([self.mask, real], dim=1)
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        device = self.model.device
        logits: Tensor = self.model(
            input_ids=ids.to(device),
            attention_mask=self.mask.to(device),
            position_ids=positions.to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits

    def select(self, rows: Tensor) -> None:
        """Go on with these rows alone, in this order; a row may stand several times."""
        self.cache.batch_select_indices(rows.to(self.model.device))
        self.mask = self.mask[rows.cpu()]


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts start with; 0 where sharing them would save too little."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return shared if shared * (len(prompts) - 1) >= PAYS else 0
