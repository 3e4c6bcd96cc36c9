"""The three kinds of parts that a method is made of (what trains, loss terms, averages), and what they are given.

A part's fields are its keys in the YAML; it holds nothing else. Order of the calls: `prepare` and `begin` on the base
model's weights, then (in a resumed process) the checkpoint's weights and `load_state`, then steps. `begin` returns the
object that acts in training (`active`). A resumed process calls it again, so what it notes must depend on its arguments
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch.optim import Optimizer
from transformers import PreTrainedModel

from ctrl import ControlConfig
from experiments.common.section import Section
from experiments.methods.active import ActiveAverage, ActiveTerm
from experiments.methods.batches import Batch
from experiments.methods.saving import save_trained
from experiments.models.precision import Precision


def no_old_text(count: int) -> list[Batch]:
    raise ValueError("this method needs old text, which the model is to keep: give MethodContext a function `old`")


@dataclass(frozen=True)
class MethodContext:
    """What a part may need next to the model.

    seed: of its random draws. precision: of the run's computations. old: returns that many batches of text which the
    model is to keep (from the replay sources, or written by the base model), the same ones at every call.
    """

    seed: int = 0
    precision: Precision = field(default_factory=lambda: Precision("fp32"))
    old: Callable[[int], list[Batch]] = no_old_text


class Tuning(Section):
    """What trains: `train: {name: its fields}`.

    in_control: whether a shorthand arm has these fields in its section `control`; else they are in `options`.
    adapts: whether what trains are adapters, whose factors are no weights of the base's kind. hooks_optimizer: whether
    it has a `hook` of its own, which needs whole weights and their own optimizer state in this process. step_copies:
    copies of the trained weights, in fp32, that this hook holds during the optimizer's step alone.
    """

    in_control: ClassVar[bool] = False
    adapts: ClassVar[bool] = False
    reads_old: ClassVar[bool] = False  # whether it needs `MethodContext.old`
    hooks_optimizer: ClassVar[bool] = False
    step_copies: ClassVar[int] = 0

    @property
    def draws(self) -> bool:
        """Whether weights are drawn in the dtype of the base's, so that another dtype draws others."""
        return self.adapts

    @classmethod
    def from_control(cls, control: ControlConfig) -> Tuning:
        """Build it for a shorthand arm that gives no fields but `control`."""
        return cls()

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        """Turn the base model into the model that trains, and mark its trainable parameters."""
        raise NotImplementedError

    def hook(self, optimizer: Optimizer) -> None:
        """Change what the optimizer does at each step, by its step hooks."""

    def save(self, model: PreTrainedModel, folder: Path) -> Path:
        """Write what was trained, so that `saving.load_onto` can read it."""
        return save_trained(model, folder)

    @property
    def layer_choice(self) -> int | Sequence[int] | None:
        """The decoder layers that it trains, as `ctrl.structure.place` takes them; None if it does not choose any."""
        return None

    def linear_layers(self, model: PreTrainedModel) -> list[str] | None:
        """Return the names of the linear layers that it chooses from; None if it does not choose by linear layers."""
        return None


class Addition(Section):
    """Base of loss terms and averages, which are added to what trains.

    active: the class that acts in training, made as `active(part, model, context)`. It notes references (start weights,
    Fisher information) when it is made. None if nothing has to be noted: the part itself then has the hooks.
    kept_copies: copies of the trained weights, in fp32, that it keeps during training.
    """

    active: ClassVar[type[Any] | None] = None
    kept_copies: ClassVar[int] = 0
    reads_old: ClassVar[bool] = False  # whether it needs `MethodContext.old`

    def refusal(self, tuning: Tuning) -> str | None:
        """Return the reason why it cannot be combined with this tuning, or None if it can."""
        return None

    @classmethod
    def active_class(cls) -> type[Any]:
        """Return the class of what `begin` returns."""
        return cls.active or cls

    def begin(self, model: PreTrainedModel, context: MethodContext) -> Any:
        """Return the object that acts in training, while the model still computes what the base does."""
        return self if self.active is None else self.active(self, model, context)


class LossTerm(Addition, ActiveTerm):
    """A term of the loss, or weights for its labelled tokens: an entry of `loss: [{name: its fields}]`.

    reads_weights: whether `penalty` is a function of all weights, which FSDP has in shards. reads_pass: whether a
    weight depends on the log-probabilities of all tokens of a pass, which then are computed first.
    """

    reads_weights: ClassVar[bool] = False
    reads_pass: ClassVar[bool] = False

    @property
    def penalises_tokens(self) -> bool:
        """Whether it has a `penalty_of` of its own in training."""
        return self.active_class().penalty_of is not ActiveTerm.penalty_of

    @property
    def weighs_tokens(self) -> bool:
        """Whether it has a `token_weights` or `weights_of` of its own in training."""
        own = self.active_class()
        return own.token_weights is not ActiveTerm.token_weights or own.weights_of is not ActiveTerm.weights_of

    @property
    def reads_logits(self) -> bool:
        """Whether `penalty` reads the logits, which are then computed for all labelled tokens at once."""
        return False

    @property
    def needs_replay(self) -> bool:
        """Whether batches must hold replayed rows."""
        return False


class Average(Addition, ActiveAverage):
    """Other weights, made from those of several steps: `average: {name: its fields}`. This base class averages nothing.

    writes_weights: whether `after_step` sets trained weights, of which DeepSpeed has its own copies.
    """

    writes_weights: ClassVar[bool] = False
