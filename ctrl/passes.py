"""One forward pass of an expanded model: its mask, labels and divergences, and the mean of these.

A mean is over the tokens that count, then over the expanded layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctrl.divergence import additive_mean, additive_mean_of_documents, masked_mean, real_tokens
from ctrl.errors import ConfigError


@dataclass(eq=False)
class ForwardPass:
    """One forward pass of the model, or of its decoder alone, in one thread.

    mask: the attention mask. labels: (batch, seq), if the model got them. documents: (batch, seq) of packed rows,
    1, 2, ... for the tokens of each document and 0 for padding: a document then counts as a sequence does.
    divergences: layer index -> divergence per token (batch, seq); None if nobody adds them to a loss.
    running: False after the pass. Gradient checkpointing then runs layers again, which must not be logged twice.
    decoder: the module whose call this is; None if it is the model's own forward.
    total: Trainer's num_items_in_batch, if the model got it.
    ids: (batch, seq), see `unpacked_ids`; they are searched for padding that nothing marks.
    positions: the model's position_ids.
    loss: what the model returned as its loss, inside `ctrl.collect_divergence`.
    """

    mask: Any
    labels: Tensor | None = None
    divergences: dict[int, Tensor] | None = None
    running: bool = True
    decoder: Any = None
    documents: Tensor | None = None
    total: Any = None
    ids: Any = None
    positions: Any = None
    loss: Any = None

    @property
    def marks(self) -> Any:
        """What marks the padding: the attention mask, or the documents of packed rows."""
        return self.mask if self.documents is None else self.documents

    def sequences(self, shape: Sequence[int]) -> Tensor | None:
        """Return what numbers the sequences of packed rows, of this shape (batch, seq): the documents, or, as for
        transformers, positions that do not go on (rows without padding, and without a mask). None for other rows.
        """
        if self.documents is not None:
            return self.documents
        positions = self.positions
        packed = isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] == shape[1]
        if not packed or real_tokens(self.mask, shape) is not None:
            return None
        return (positions.diff(prepend=positions[:, :1] - 1) != 1).cumsum(-1).expand(*shape)

    def counted(self, tokens: str, shape: Sequence[int]) -> Tensor | None:
        """Return which tokens of this shape, (batch, seq), count; None for all. tokens: the config's field."""
        mask, seq = real_tokens(self.marks, shape), shape[1]
        if tokens == "real":
            return mask
        if self.labels is None:
            raise ConfigError(
                "divergence_tokens='labels' needs labels (batch, seq), but neither the model nor the trainer's inputs "
                "have them: expand with divergence_tokens='real'"
            )
        if self.labels.dim() < 2 or self.labels.shape[1] != seq or self.labels.is_floating_point():
            raise ConfigError(
                f"divergence_tokens='labels' needs a label for each of {seq} tokens, but the labels have shape "
                f"{tuple(self.labels.shape)}: expand with divergence_tokens='real'"
            )
        labelled = self.labels != -100
        return labelled if mask is None else labelled & mask.to(labelled.device)


def unpacked_ids(given: Mapping[str, Any]) -> Any:
    """Return the input_ids among the arguments of a pass; None for packed rows, which have positions."""
    return given.get("input_ids") if given.get("position_ids") is None else None


def mean_divergence(
    passes: Sequence[ForwardPass], tokens: str, device: torch.device, total: Tensor | int | None = None
) -> Tensor | None:
    """Average the divergence over tokens, then over layers; None if no layer has measured it.

    tokens: `divergence_tokens` of the config. total: labelled tokens of all micro-batches of the optimiser step
    (Trainer's num_items_in_batch); the result is then a sum over sequences, see `additive_mean`.
    """
    by_layer: dict[int, list[tuple[ForwardPass, Tensor]]] = {}
    for one in passes:
        for index, per_token in (one.divergences or {}).items():
            by_layer.setdefault(index, []).append((one, per_token))  # a pass may leave a layer out (LayerDrop)
    means = [_over_passes(terms, tokens, total).to(device) for terms in by_layer.values()]
    return torch.stack(means).mean() if means else None


def _labelled(labels: Any, seq: int) -> Tensor:
    """Return which labels count, (batch, seq): not that of a row's first token, which nothing predicts.

    A classifier has one label a sequence, (batch,), or one a class, (batch, classes): these all count.
    """
    if labels is None:
        raise ConfigError(
            "a total is the number of labelled tokens, but no pass has labels: give collected.divergence and weighted "
            "labels=, or no total"
        )
    if labels.dim() < 2 or labels.shape[1] != seq or labels.is_floating_point():
        counted: Tensor = labels.reshape(len(labels), -1) != -100
        return counted
    return torch.cat([torch.zeros_like(labels[:, :1], dtype=torch.bool), labels[:, 1:] != -100], dim=1)


def _additive(per_token: Tensor, mask: Tensor | None, one: ForwardPass, total: Tensor | int) -> Tensor:
    labelled, sequences = _labelled(one.labels, per_token.shape[1]), one.sequences(per_token.shape)
    if sequences is None or labelled.shape != per_token.shape:
        return additive_mean(per_token, mask, labelled.sum(-1), total)
    mask = torch.ones_like(labelled) if mask is None else mask
    return additive_mean_of_documents(per_token, mask, labelled, sequences, total)


def _over_passes(terms: Sequence[tuple[ForwardPass, Tensor]], tokens: str, total: Tensor | int | None) -> Tensor:
    """Average one layer's divergence over all tokens of the passes that it ran in."""
    masked = [(one, d, one.counted(tokens, d.shape)) for one, d in terms]
    if total is not None:
        return torch.stack([_additive(d, mask, one, total) for one, d, mask in masked]).sum()
    means = torch.stack([masked_mean(d, mask) for _, d, mask in masked])
    if len(means) == 1:
        return means[0]
    sizes = [d.new_tensor(d.numel()) if m is None else m.sum().to(d) for _, d, m in masked]
    weights = torch.stack(sizes)
    return (means * weights).sum() / weights.sum().clamp_min(1)
