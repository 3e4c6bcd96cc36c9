"""Batches of prompts with their key-value cache; the tokens that all prompts start with are computed only once.

These are for example the system turn and the first words of a question.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.models.key_values import KeyValues
from experiments.models.tokens import pad

LEAST_SAVED = 64  # tokens; fewer do not pay for one more forward pass, which reads all weights


class Prefix:
    """The tokens that all prompts start with and the cache after them. Each prompt has at least one more token."""

    def __init__(self, model: PreTrainedModel, tokens: Sequence[int] = ()) -> None:
        self.tokens = tuple(tokens)
        self.cache = KeyValues(model)
        if self.tokens:
            ids = torch.tensor([self.tokens], device=model.device)
            model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)


class Prompts:
    """A batch of prompts after a prefix, in the order [prefix, padding, own tokens, later tokens].

    logits: (prompts, vocabulary), for the token after each prompt.
    """

    def __init__(self, model: PreTrainedModel, batch: Sequence[Sequence[int]], prefix: Prefix) -> None:
        self.model, shared = model, len(prefix.tokens)
        own = [prompt[shared:] for prompt in batch]
        self.cache = copy.deepcopy(prefix.cache)
        if shared:
            self._reorder(torch.zeros(len(batch), dtype=torch.int64))
        self.mask = torch.ones(len(batch), shared, dtype=torch.int64)
        self.logits = self.read(pad(own, 0, left=True), pad([[1] * len(row) for row in own], 0, left=True))

    def read(self, ids: Tensor, real: Tensor) -> Tensor:
        """Append ids (rows, new) and return the last logits (rows, vocabulary). real: 0 for padding, else 1.

        Positions do not count padding.
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
        """Keep only these rows, in this order; a row may be given several times."""
        self._reorder(rows)
        self.mask = self.mask[rows.cpu()]

    def _reorder(self, rows: Tensor) -> None:
        reorder: Any = self.cache.reorder_cache  # all kinds of layers have it; its stub says LongTensor
        reorder(rows.to(self.model.device))


def shared_start(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the tokens that all prompts start with; none if sharing them would save too little."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return prompts[0][:shared] if shared * (len(prompts) - 1) >= LEAST_SAVED else ()
