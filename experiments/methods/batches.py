"""Batches as methods see them: their rows one at a time, and their fraction of an optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ctrl.control_model import ControlModel

Batch = Mapping[str, Tensor]  # the arguments of the model's call; `labels` (batch, seq) are -100 where no loss is


def read_by(model: Any, batch: Batch) -> dict[str, Any]:
    """Return the arguments of a model's call, without the marks of tokens that it does not read."""
    unread = ("replayed",) if isinstance(model, ControlModel) else ("replayed", "documents")
    return {name: value for name, value in batch.items() if name not in unread}


def single_rows(batches: list[Batch], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the rows one at a time, (1, seq), without padding, on the device; values that are no tensors are kept."""
    for batch in batches:
        for i in range(len(batch["input_ids"])):
            mask = batch["attention_mask"][i].bool() if "attention_mask" in batch else slice(None)
            row = {k: v[i : i + 1, mask].to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            row.pop("attention_mask", None)
            yield row


def micro_batch_fraction(batch: Batch, total: Tensor | int | None) -> Tensor | float:
    """Return this micro-batch's fraction of an optimiser step: its labelled tokens / all labelled tokens of the step.

    A term of the parameters alone, times this, counts once per step however the step is split. Without a total
    (models whose loss Trainer divides by the number of micro-batches) it is 1.
    """
    if total is None:
        return 1.0
    return (batch["shift_labels"] != -100).sum() / torch.as_tensor(total, device=batch["shift_labels"].device)


def replayed_positions(batch: Batch) -> Tensor:
    """Return a mask (batch, kept) of the replayed positions; the data marks rows, or tokens of the input.

    A batch without marks has none.
    """
    labels, replayed = batch["shift_labels"], batch.get("replayed")
    if replayed is None:
        return torch.zeros_like(labels, dtype=torch.bool)
    if replayed.dim() == 1:
        return replayed.bool()[:, None].expand_as(labels)
    return replayed.bool()[:, batch["logits_to_keep"]]
