"""Multiple choice by likelihood: each option's mean log-probability per token behind the prompt.

A prompt is read once and its cached keys and values serve all its options. The scores equal those of one full sequence
per option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.data.tokens import pad
from experiments.evaluation.generation import Advance, by_length, nothing
from experiments.evaluation.prompts import PAYS, Prefix, Prompts


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
    prefix = Prefix(model, [choice.prompt for choice in choices])
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


def _score_batch(model: PreTrainedModel, batch: list[Choice], prefix: Prefix) -> list[list[float]]:
    prompts = Prompts(model, [choice.prompt for choice in batch], prefix)
    options = [option for choice in batch for option in choice.options]
    owner = torch.tensor([i for i, choice in enumerate(batch) for _ in choice.options], device=model.device)
    first = torch.tensor([option[0] for option in options], device=model.device)
    sums = torch.log_softmax(prompts.logits.float(), dim=-1)[owner, first]
    longer = [i for i, option in enumerate(options) if len(option) > 1]
    if longer:
        prompts.select(owner[longer])
        sums[longer] += _rest(prompts, [options[i] for i in longer])
    means = iter((sums / torch.tensor([len(option) for option in options], device=model.device)).tolist())
    return [[next(means) for _ in choice.options] for choice in batch]


def _rest(prompts: Prompts, options: list[tuple[int, ...]]) -> Tensor:
    """Summed log-probability of each option's tokens but the first. One row of prompts per option.

    Read in blocks of columns: options that have ended leave, so that few tokens of padding are read.
    """
    sums = torch.zeros(len(options), device=prompts.model.device)
    rows, start = list(range(len(options))), 0
    for stop in _blocks([len(option) - 1 for option in options]):
        going = [at for at, row in enumerate(rows) if len(options[row]) - 1 > start]
        if len(going) < len(rows):
            prompts.select(torch.tensor(going))
            rows = [rows[at] for at in going]
        inputs = pad([options[row][:-1][start:stop] for row in rows], 0)
        targets = pad([options[row][1:][start:stop] for row in rows], 0)
        real = pad([[1] * len(options[row][1:][start:stop]) for row in rows], 0)
        logits = prompts.read(inputs, real)
        chosen = log_likelihood(logits, targets.to(logits.device))
        sums[rows] += (chosen * real.to(chosen.device)).sum(-1)
        start = stop
    return sums


def _blocks(lengths: Sequence[int]) -> list[int]:
    """Where columns of rows of these lengths are cut: each cut saves PAYS tokens of padding. The last is the end."""
    end = max(lengths)
    saved = {cut: sum(length <= cut for length in lengths) * (end - cut) for cut in set(lengths)}
    best = max(saved, key=lambda cut: saved[cut])
    if saved[best] < PAYS:
        return [end]
    before = [min(length, best) for length in lengths]
    after = [length - best for length in lengths if length > best]
    return [*_blocks(before), *(best + stop for stop in _blocks(after))]


def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """log p(target) in fp32: logits (batch, seq, vocabulary), targets (batch, seq) -> (batch, seq)."""
    rows = [_log_likelihood(row, target) for row, target in zip(logits, targets, strict=True)]
    return torch.stack(rows)


def _log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
