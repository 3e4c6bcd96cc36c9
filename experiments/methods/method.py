"""A whole method: what trains, loss terms and an average behind one interface, which is all that the engine knows."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from experiments.methods.base import (
    Addition,
    Average,
    LossTerm,
    MethodContext,
    TokenPenalties,
    Tokens,
    TokenWeights,
    Tuning,
)
from experiments.methods.batches import Batch


@dataclass(frozen=True)
class Method:
    """What trains x loss terms x averaging. Each hook is described at the part that has it (`base`).

    Penalties of several terms add up, their token weights multiply. Raises ValueError if an addition cannot be combined
    with what trains.
    """

    tuning: Tuning
    losses: tuple[LossTerm, ...] = ()
    average: Average = field(default_factory=Average)

    def __post_init__(self) -> None:
        refusals = [addition.refusal(self.tuning) for addition in self.additions]
        if any(refusals):
            raise ValueError("; ".join(filter(None, refusals)))

    @property
    def additions(self) -> tuple[Addition, ...]:
        return (*self.losses, self.average)

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        return self.tuning.prepare(model, context)

    def begin(self, model: PreTrainedModel, context: MethodContext) -> None:
        for addition in self.additions:
            addition.begin(model, context)

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        penalties = [term.penalty(model, batch, outputs, total) for term in self.losses]
        given = [penalty for penalty in penalties if penalty is not None]
        return functools.reduce(torch.add, given) if given else None

    @property
    def token_weights(self) -> TokenWeights | None:
        """The function that weighs tokens, or None if no term does."""
        hooks = [term.weights_of for term in self.losses if term.weighs_tokens]
        return functools.partial(_product, hooks) if hooks else None

    @property
    def token_penalties(self) -> TokenPenalties | None:
        """The function that penalises tokens, or None if no term does."""
        hooks = [term.penalty_of for term in self.losses if term.penalises_tokens]
        return (lambda tokens: [found for hook in hooks if (found := hook(tokens))]) if hooks else None

    def begin_pass(self, model: Any, batch: Batch) -> None:
        for term in self.losses:
            term.begin_pass(model, batch)

    def after_step(self, model: nn.Module, step: int) -> None:
        for addition in self.additions:
            addition.after_step(model, step)

    def evaluated(self, model: nn.Module) -> AbstractContextManager[None]:
        return self.average.evaluated(model)

    def state(self) -> dict[str, Tensor]:
        """The average's tensors by their own names, and those of the i-th loss term as `loss i NAME`."""
        terms = {f"loss {i} {name}": t for i, term in enumerate(self.losses) for name, t in term.state().items()}
        return {**self.average.state(), **terms}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.average.load_state(state)
        for i, term in enumerate(self.losses):
            start = f"loss {i} "
            term.load_state({name.removeprefix(start): t for name, t in state.items() if name.startswith(start)})

    def hook(self, optimizer: Optimizer) -> None:
        self.tuning.hook(optimizer)

    def save(self, model: PreTrainedModel, folder: Path) -> Path:
        """Write what was trained. Call it inside `evaluated`."""
        return self.tuning.save(model, folder)

    @property
    def layer_choice(self) -> int | Sequence[int] | None:
        return self.tuning.layer_choice

    @property
    def hooks_optimizer(self) -> bool:
        return self.tuning.hooks_optimizer

    @property
    def reads_logits(self) -> bool:
        return any(term.reads_logits for term in self.losses)

    @property
    def needs_replay(self) -> bool:
        return any(term.needs_replay for term in self.losses)

    @property
    def reads_old(self) -> bool:
        """Whether it needs old text, replayed or not."""
        return any((self.tuning.reads_old, self.average.reads_old, *(term.reads_old for term in self.losses)))

    @property
    def reads_weights(self) -> bool:
        return any(term.reads_weights for term in self.losses)

    @property
    def reads_pass(self) -> bool:
        return any(term.reads_pass for term in self.losses)

    @property
    def writes_weights(self) -> bool:
        return self.average.writes_weights


def _product(hooks: Sequence[TokenWeights], tokens: Tokens) -> Tensor | None:
    given = [weights for hook in hooks if (weights := hook(tokens)) is not None]
    return functools.reduce(torch.mul, given) if given else None
