"""Methods that add a term to the loss which holds the model near its base."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

import ctrl
from ctrl.control_model import ControlModel
from ctrl.gap import evaluating
from ctrl.sharded import sharded
from experiments.methods.base import Batch, Method, Setting, share, snapshot, trainable
from experiments.methods.saving import is_peft
from experiments.methods.tuning import Control, Full, Lora, Partial, single_rows
from experiments.models.precision import Precision

TUNINGS: dict[str, type[Method]] = {"full": Full, "partial": Partial, "control": Control, "lora": Lora}
CHUNK = 64  # tokens of the vocabulary-sized comparison at a time


class OnTop(Method):
    """A method that says how to train, not what: `trains` names that, with its default options."""

    trains: Literal["full", "partial", "control", "lora"] = "full"

    def prepare(self, model: PreTrainedModel, setting: Setting) -> PreTrainedModel:
        return TUNINGS[self.trains]().prepare(model, setting)

    @property
    def places_layers(self) -> bool:
        return self.trains in ("partial", "control")


class Kl(OnTop):
    """weight * sum over tokens of KL(base || tuned) / labelled tokens of the step, over the whole vocabulary in fp32.

    The tokens are the labelled ones, or (`tokens: replayed`) the replayed ones of them; the others then count as 0.
    """

    weight: float = Field(1.0, ge=0)
    tokens: Literal["all", "replayed"] = "all"
    _base: Any = PrivateAttr(None)
    _precision: Any = PrivateAttr(None)

    def begin(self, model: PreTrainedModel, setting: Setting) -> None:
        self._precision = setting.precision
        if not (isinstance(model, ControlModel) or is_peft(model)):
            self._base = copy.deepcopy(model).requires_grad_(False).eval()
            setting.precision.hold_frozen(self._base)

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        labelled = batch["shift_labels"] != -100
        counted = labelled & self._chosen(batch) if self.tokens == "replayed" else labelled
        total = labelled.sum().clamp_min(1) if total is None else total
        if not counted.any() and not (self._base is None and sharded(model)):  # shards: a pass of all processes
            return outputs.logits.new_zeros((), dtype=torch.float32)
        base = self._base_logits(model, batch)
        return self.weight * kl_sum(base[counted], outputs.logits[counted]) / total

    @property
    def reads_logits(self) -> bool:
        return True

    @property
    def needs_replay(self) -> bool:
        return self.tokens == "replayed"

    def _chosen(self, batch: Batch) -> Tensor:
        """Which kept positions (batch, kept) are replayed; the mark is per row or per token of the input."""
        replayed = batch["replayed"]
        if replayed.dim() == 1:
            return replayed.bool()[:, None].expand_as(batch["shift_labels"])
        return replayed.bool()[:, batch["logits_to_keep"]]

    @torch.no_grad()
    def _base_logits(self, model: Any, batch: Batch) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "shift_labels", "replayed")}
        where: AbstractContextManager[Any] = nullcontext()
        if self._base is None:
            where = model.disable_adapter() if is_peft(model) else ctrl.pretrained(model)
        with where, evaluating(model), self._precision.autocast():  # no dropout: the base is one distribution
            logits: Tensor = (model if self._base is None else self._base)(**inputs).logits
        return logits


def kl_sum(base: Tensor, tuned: Tensor) -> Tensor:
    """sum over tokens of KL(base || tuned) from logits (tokens, vocabulary), in nats; log-softmax in fp32, in chunks
    whose intermediate values are computed again in the backward pass."""
    parts = [
        checkpoint(_kl, p, q, use_reentrant=False) for p, q in zip(base.split(CHUNK), tuned.split(CHUNK), strict=True)
    ]
    return torch.stack(parts).sum()


def _kl(base: Tensor, tuned: Tensor) -> Tensor:
    p, q = base.float().log_softmax(-1), tuned.float().log_softmax(-1)
    return F.kl_div(q, p, log_target=True, reduction="sum")


class L2sp(OnTop):
    """weight / 2 * |theta - theta_0|^2 over what trains (arXiv 1802.01483); theta_0 is the start."""

    trains: Literal["full", "partial", "control"] = "full"
    weight: float = Field(0.01, ge=0)
    _start: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    reads_weights: ClassVar[bool] = True

    def begin(self, model: PreTrainedModel, setting: Setting) -> None:
        self._start = snapshot(model)

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        squares = [(p - self._start[name]).square().sum() for name, p in trainable(model).items()]
        return self.weight / 2 * torch.stack(squares).sum() * share(batch, total)


class Ewc(OnTop):
    """weight / 2 * sum_i F_i (theta_i - theta_0i)^2 (arXiv 1612.00796), F the diagonal Fisher information per token.

    F_i = sum over rows of g_i^2 / labelled tokens, g the gradient of a row's summed log-likelihood at the base, on
    old text. On text that the base wrote, tokens are drawn from the model itself, so this estimates the Fisher
    information proper, and half the quadratic form is the KL per token to second order.
    """

    trains: Literal["full", "partial", "control"] = "full"
    weight: float = Field(1.0, ge=0)
    batches: int = Field(4, ge=1, description="batches of old text that F is estimated on")
    _start: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _fisher: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    reads_weights: ClassVar[bool] = True

    def begin(self, model: PreTrainedModel, setting: Setting) -> None:
        self._start = snapshot(model)
        self._fisher = fisher(model, list(single_rows(setting.old(self.batches), model.device)), setting.precision)

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        terms = [(self._fisher[name] * (p - self._start[name]).square()).sum() for name, p in trainable(model).items()]
        return self.weight / 2 * torch.stack(terms).sum() * share(batch, total)


def fisher(model: PreTrainedModel, rows: list[dict[str, Any]], precision: Precision) -> dict[str, Tensor]:
    """The diagonal of `Ewc`, by name of what trains. rows: single sequences (1, seq) with labels."""
    parameters, tokens = trainable(model), 0
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    training = model.training
    model.eval()
    for row in rows:
        inputs = {k: v for k, v in row.items() if k != "labels"}
        labels = row["labels"][0, 1:]
        with precision.autocast():
            logits = model(**inputs).logits[0, :-1]
        nll = F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
        gradients = torch.autograd.grad(nll, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.square()
        tokens += int((labels != -100).sum())
    model.train(training)
    return {name: total / max(tokens, 1) for name, total in sums.items()}
