"""What every method is: its options, what it prepares, and the places where it may act during training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.sharded import is_sharded, reshard
from experiments.common.section import Section
from experiments.methods.saving import save_trained
from experiments.models.precision import Precision

if TYPE_CHECKING:
    from experiments.config import ArmConfig  # which checks names against METHODS

Batch = Mapping[str, Tensor]  # what the model is called with; `labels` (batch, seq) are -100 where there is no loss


def no_old_text(count: int) -> list[Batch]:
    raise ValueError("this method needs text that the base is to keep: give Setting a function `old`")


@dataclass(frozen=True)
class Setting:
    """What a method may need beside the model.

    seed: of whatever it draws. precision: how the run computes. old: gives that many batches of text which the model is
    to keep (the replay sources, or text that the base wrote), the same ones at every call.
    """

    arm: ArmConfig
    seed: int = 0
    precision: Precision = field(default_factory=lambda: Precision("fp32"))
    old: Callable[[int], list[Batch]] = no_old_text


class Method(Section):
    """A way to train. Its fields are the arm's `options`; the hooks below do nothing unless a method overrides them.

    reads_weights: whether `penalty` is a function of the weights, which FSDP has in shards. writes_weights: whether
    `after_step` sets what trains, of which DeepSpeed has its own copies.

    Order: `prepare` and `begin` on the base's weights, then (resumed) the checkpoint's weights and `load_state`, then
    steps. What `begin` notes is recomputed in a resumed process, so it must depend on its arguments alone.
    """

    reads_weights: ClassVar[bool] = False
    writes_weights: ClassVar[bool] = False

    def prepare(self, model: PreTrainedModel, setting: Setting) -> PreTrainedModel:
        """Say what trains: the base model in, the model to train out."""
        raise NotImplementedError

    def begin(self, model: PreTrainedModel, setting: Setting) -> None:
        """Note references (weights of the base, Fisher information) while the model is still at its start."""

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        """A term of the loss, such that micro-batches add up to one large batch.

        batch: of the model's call, with `shift_labels` (batch, kept) and `replayed` where the data has it. outputs:
        the model's, with logits at the kept positions if `reads_logits`, else with none of them. total: labelled tokens
        of the whole optimiser step (see `share`).
        """
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after each optimiser step, before anything is measured. step: 1 after the first."""

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the model has the weights that are measured and saved."""
        yield

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the weights. Of a model in shards, this process's part."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`, with whole tensors."""

    def save(self, model: PreTrainedModel, folder: Path) -> Path:
        """Keep what was trained. Call it inside `evaluated`."""
        return save_trained(model, folder)

    @property
    def places_layers(self) -> bool:
        """Whether `control.layers` of the arm matters."""
        return False

    @property
    def reads_logits(self) -> bool:
        """Whether `penalty` reads the logits, which are then made for all labelled tokens at once."""
        return False

    @property
    def needs_replay(self) -> bool:
        """Whether batches must hold replayed rows."""
        return False


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what trains."""
    return {name: p.detach().clone() for name, p in trainable(model).items()}


def placed(values: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Values by name, each as its parameter now lies: this process's shards of it, where FSDP has sharded the model
    since they were noted. They have to be whole, or placed already."""
    reshard(model)
    parameters = trainable(model)
    if not any(is_sharded(parameters[name]) and not is_sharded(value) for name, value in values.items()):
        return values
    from torch.distributed.tensor import distribute_tensor

    def part(value: Tensor, p: Any) -> Tensor:
        # without a source: every process has the whole value, and takes its own part
        return distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)

    return {name: part(value, parameters[name]) for name, value in values.items()}


@contextmanager
def swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block the trained parameters have these values; afterwards the same bits as before.

    Of a model in shards by copying, since FSDP gathers from the tensors that it has.
    """
    reshard(model)
    parameters = trainable(model)
    shards = any(map(is_sharded, parameters.values()))
    before = {name: p.detach().clone() if shards else p.data for name, p in parameters.items()}
    put = _copied if shards else _set
    try:
        for name, p in parameters.items():
            put(p, values[name])
        yield
    finally:
        reshard(model)
        for name, p in parameters.items():
            put(p, before[name])


def _set(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.data = value.to(parameter.device, parameter.dtype)


def _copied(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def share(batch: Batch, total: Tensor | int | None) -> Tensor | float:
    """The part of one optimiser step that this micro-batch is: its labelled tokens / all labelled tokens of the step.

    A term of the parameters alone, times this, counts once per step however the step is split. Without a total
    (models whose loss Trainer divides by the number of micro-batches) it is 1.
    """
    if total is None:
        return 1.0
    return (batch["shift_labels"] != -100).sum() / torch.as_tensor(total, device=batch["shift_labels"].device)
