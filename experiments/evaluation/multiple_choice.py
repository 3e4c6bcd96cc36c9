"""Multiple choice by likelihood: each option's mean log-probability per token behind the prompt.

A prompt is run once and its cached keys and values serve all its options; what all prompts start with (the system
turn) is run once for all of them. The scores equal those of one full sequence per option.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from experiments.data.tokens import pad
from experiments.evaluation.generation import Advance, by_length, nothing


@dataclass(frozen=True)
class Choice:
    """Token ids of a prompt and of its options, none of them empty."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.options or not all(self.options):
            raise ValueError(f"a prompt and each of its options need at least one token, but got {self}")


@torch.no_grad()
def score_options(
    model: PreTrainedModel, choices: Sequence[Choice], batch_size: int = 128, advance: Advance = nothing
) -> list[list[float]]:
    """score(option) = 1/T * sum over t of log p(option_t | prompt, option_<t), T its number of tokens.

    batch_size: prompts at a time. Returns one list per choice, one score per option, in nats per token, at most 0.
    """
    shared = _shared_length([choice.prompt for choice in choices])
    prefix = choices[0].prompt[:shared] if choices else ()
    scores: list[list[float]] = [[] for _ in choices]
    for rows in by_length([_work(choice) for choice in choices], batch_size):
        batch = [choices[i] for i in rows]
        for i, values in zip(rows, _score_batch(model, batch, prefix), strict=True):
            scores[i] = values
        advance(len(rows))
    return scores


def _work(choice: Choice) -> int:
    """Sorts by the longest option first and by the prompt second: an option token costs the whole vocabulary."""
    return 1000 * max(len(option) for option in choice.options) + len(choice.prompt)


def _shared_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all prompts start with; each keeps at least one of its own. 0 where it would not pay."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return shared if shared >= 8 and len(prompts) > 1 else 0


def _score_batch(model: PreTrainedModel, batch: list[Choice], prefix: tuple[int, ...]) -> list[list[float]]:
    state = _Prompts(model, batch, prefix)
    options = [option for choice in batch for option in choice.options]
    owner = torch.tensor([i for i, choice in enumerate(batch) for _ in choice.options], device=model.device)
    first = torch.tensor([option[0] for option in options], device=model.device)
    sums = state.first[owner, first]
    longer = [i for i, option in enumerate(options) if len(option) > 1]
    if longer:
        sums[longer] += state.rest([options[i] for i in longer], owner[longer])
    means = iter((sums / torch.tensor([len(option) for option in options], device=model.device)).tolist())
    return [[next(means) for _ in choice.options] for choice in batch]


class _Prompts:
    """A batch of prompts, read once: [shared prefix, padding, own tokens] and its cache.

    first: (prompts, vocabulary), log-probabilities of the token behind each prompt.
    """

    def __init__(self, model: PreTrainedModel, batch: list[Choice], prefix: tuple[int, ...]) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config)
        own = [choice.prompt[len(prefix) :] for choice in batch]
        mask = pad([[1] * len(row) for row in own], 0, left=True)
        ids = pad(own, 0, left=True)
        if prefix:
            self._run(torch.tensor([prefix]), torch.ones(1, len(prefix), dtype=torch.int64), None, keep=1)
            self.cache.batch_repeat_interleave(len(batch))
            mask = torch.cat([torch.ones(len(batch), len(prefix), dtype=torch.int64), mask], dim=1)
        self.mask = mask
        logits = self._run(ids, mask, _positions(mask, ids.shape[1]), keep=1)
        self.first = torch.log_softmax(logits[:, -1].float(), dim=-1)

    def rest(self, options: list[tuple[int, ...]], owner: Tensor) -> Tensor:
        """Summed log-probability of each option's tokens but the first. owner: the row of its prompt."""
        self.cache.batch_select_indices(owner)
        inputs = pad([option[:-1] for option in options], 0)
        seen = pad([[1] * (len(option) - 1) for option in options], 0)
        targets = pad([option[1:] for option in options], 0).to(self.model.device)
        mask = torch.cat([self.mask[owner.cpu()], seen], dim=1)
        logits = self._run(inputs, mask, _positions(mask, inputs.shape[1]), keep=0)
        chosen = log_likelihood(logits, targets)
        return (chosen * seen.to(chosen.device)).sum(-1)

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor | None, keep: int) -> Tensor:
        device = self.model.device
        out = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=None if positions is None else positions.to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits


def _positions(mask: Tensor, last: int) -> Tensor:
    """Positions of the last tokens, counted without padding."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -last:]


def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """log p(target) in fp32: logits (batch, seq, vocabulary), targets (batch, seq) -> (batch, seq)."""
    rows = [_log_likelihood(row, target) for row, target in zip(logits, targets, strict=True)]
    return torch.stack(rows)


def _log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
