"""Multiple choice by likelihood: each option's mean log-probability per token after the prompt.

Prompts and options are read as trees: tokens that several begin with are computed once. The scores equal those of one
full sequence per option, which is used for models that cannot read trees.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.evaluation.tree import Tree, next_log_probs, reads_trees
from experiments.models.generation import by_length
from experiments.models.reading import reading
from experiments.models.sharing import Progress, each, in_order, no_progress
from experiments.models.tokens import pad

NODES = 384  # tokens of a tree: attention grows with their square, and each tree reads common beginnings again
BATCH = 16  # choices at a time without trees


@dataclass(frozen=True)
class Choice:
    """Token ids of a prompt and its options; none is empty."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.options or not all(self.options):
            raise ValueError(f"a prompt and each of its options need at least one token, but got {self}")

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(len(option) for option in self.options)


@torch.no_grad()
def score_options(
    model: PreTrainedModel, choices: Sequence[Choice], nodes: int = NODES, progress: Progress = no_progress
) -> list[list[float]]:
    """Return score(option) = 1/T * sum over t of log p(option_t | prompt, option_<t), T its number of tokens.

    nodes: size at which a tree is read. One list per choice, one score per option, in nats per token, at most 0.
    """
    if not choices:
        return []
    if not reads_trees(model, max(choice.longest for choice in choices), nodes):
        return _by_rows(model, choices, progress)
    groups = list(_groups(choices, nodes))
    found = each(groups, lambda group: group.scores(model), progress, lambda group: len(group.choices))
    return in_order([group.choices for group in groups], found)


class _Group:
    """Some choices in one tree."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.choices: list[int] = []
        self._asked: list[list[list[tuple[int, int]]]] = []  # (node, token after it), of each choice's options

    def add(self, i: int, choice: Choice) -> None:
        prompt = self.tree.add(choice.prompt)
        self.choices.append(i)
        self._asked.append([self._path(prompt, option) for option in choice.options])

    def _path(self, node: int, option: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return (node before the token, token) for each token of the option. The last token is not read itself."""
        pairs = [(node, option[0])]
        for read, token in itertools.pairwise(option):
            node = self.tree.add([read], node)
            pairs.append((node, token))
        return pairs

    def scores(self, model: PreTrainedModel) -> list[list[float]]:
        pairs = [pair for options in self._asked for option in options for pair in option]
        values = iter(next_log_probs(model, self.tree, pairs))
        return [[_mean([next(values) for _ in option]) for option in options] for options in self._asked]


def _groups(choices: Sequence[Choice], nodes: int) -> Iterator[_Group]:
    """Put choices whose prompts begin alike into the same tree."""
    group = _Group()
    for i in sorted(range(len(choices)), key=lambda i: choices[i].prompt):
        group.add(i, choices[i])
        if len(group.tree) >= nodes:
            yield group
            group = _Group()
    if group.choices:
        yield group


def _by_rows(model: PreTrainedModel, choices: Sequence[Choice], progress: Progress) -> list[list[float]]:
    """Read one sequence per option, padded on the left if the model can skip padding."""

    def read(rows: list[int]) -> list[list[float]]:
        asked = [(choices[i].prompt, option) for i in rows for option in choices[i].options]
        parts = [asked] if reading(model).pads else [[one] for one in asked]
        means = iter([mean for part in parts for mean in _row_scores(model, part)])
        return [[next(means) for _ in choices[i].options] for i in rows]

    batches = list(by_length([choice.longest for choice in choices], BATCH))
    return in_order(batches, each(batches, read, progress, len))


def _row_scores(model: PreTrainedModel, asked: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
    keep = 1 + max(len(option) for _, option in asked)
    sequences = [[*prompt, *option] for prompt, option in asked]
    ids, real = (pad(rows, 0, left=True).to(model.device) for rows in (sequences, [[1] * len(s) for s in sequences]))
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=real, position_ids=positions, use_cache=False, logits_to_keep=keep
    ).logits
    chosen = log_likelihood(logits[:, :-1], ids[:, 1 - keep :])
    return [float(row[-len(option) :].mean()) for row, (_, option) in zip(chosen, asked, strict=True)]


def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log p(target) in fp32: logits (batch, seq, vocabulary), targets (batch, seq) -> (batch, seq)."""
    rows = [_log_likelihood(row, target) for row, target in zip(logits, targets, strict=True)]
    return torch.stack(rows)


def _log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
