"""A whole method: what trains, loss terms and an average behind one interface, which is all that the engine knows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from experiments.methods.active import (
    ActiveAverage,
    ActiveTerm,
    TokenPenalties,
    TokenPenalty,
    Tokens,
    TokenWeights,
)
from experiments.methods.base import Addition, Average, LossTerm, MethodContext, Tuning
from experiments.methods.batches import Batch
from experiments.models.narrow import is_narrow, widen_trained


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
        around = context.precision.autocast() if is_narrow(model) else nullcontext()
        with around:  # the pass in which ctrl looks whether a layer can be expanded
            prepared = self.tuning.prepare(model, context)
        widen_trained(prepared)
        return prepared

    def begin(self, model: PreTrainedModel, context: MethodContext) -> ActiveMethod:
        """Return the method in training. model: prepared, at its start; its frozen weights are held as it trains."""
        context.precision.hold_frozen(model)
        terms = tuple(term.begin(model, context) for term in self.losses)
        return ActiveMethod(self, terms, self.average.begin(model, context))

    def hook(self, optimizer: Optimizer) -> None:
        self.tuning.hook(optimizer)

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
    def weighs_tokens(self) -> bool:
        return any(term.weighs_tokens for term in self.losses)

    @property
    def penalises_tokens(self) -> bool:
        return any(term.penalises_tokens for term in self.losses)

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


@dataclass(frozen=True)
class ActiveMethod:
    """A method in training: the objects that its parts returned at the start, behind one interface."""

    method: Method
    terms: tuple[ActiveTerm, ...]
    average: ActiveAverage

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        penalties = [term.penalty(model, batch, outputs, total) for term in self.terms]
        given = [penalty for penalty in penalties if penalty is not None]
        return functools.reduce(torch.add, given) if given else None

    def begin_pass(self, model: Any, batch: Batch) -> tuple[Any, ...]:
        """Return what each term notes of a batch: `noted` of the tokens of its pass."""
        return tuple(term.begin_pass(model, batch) for term in self.terms)

    @property
    def token_weights(self) -> TokenWeights | None:
        """The function that weighs tokens, or None if no term does."""
        return self._weights if self.method.weighs_tokens else None

    @property
    def token_penalties(self) -> TokenPenalties | None:
        """The function that penalises tokens, or None if no term does."""
        return self._penalties if self.method.penalises_tokens else None

    def _weights(self, tokens: Tokens) -> Tensor | None:
        found = (term.weights_of(own) for term, own in self._with_own_notes(tokens))
        given = [weights for weights in found if weights is not None]
        return functools.reduce(torch.mul, given) if given else None

    def _penalties(self, tokens: Tokens) -> list[TokenPenalty]:
        return [found for term, own in self._with_own_notes(tokens) if (found := term.penalty_of(own)) is not None]

    def _with_own_notes(self, tokens: Tokens) -> Iterator[tuple[ActiveTerm, Tokens]]:
        for term, noted in zip(self.terms, tokens.noted, strict=True):
            yield term, replace(tokens, noted=noted)

    def after_step(self, model: nn.Module, step: int) -> None:
        for part in (*self.terms, self.average):
            part.after_step(model, step)

    def evaluated(self, model: nn.Module) -> AbstractContextManager[None]:
        return self.average.evaluated(model)

    def state(self) -> dict[str, Tensor]:
        """The average's tensors by their own names, and those of the i-th loss term as `loss i NAME`."""
        terms = {f"loss {i} {name}": t for i, term in enumerate(self.terms) for name, t in term.state().items()}
        return {**self.average.state(), **terms}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.average.load_state(state)
        for i, term in enumerate(self.terms):
            start = f"loss {i} "
            term.load_state({name.removeprefix(start): t for name, t in state.items() if name.startswith(start)})

    def save(self, model: PreTrainedModel, folder: Path) -> Path:
        """Write what was trained. Call it inside `evaluated`."""
        return self.method.tuning.save(model, folder)
