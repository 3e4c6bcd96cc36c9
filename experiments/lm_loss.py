"""The language-model loss of a training step."""

from __future__ import annotations

from typing import Any

import torch


def only_label_logits(inputs: dict[str, Any]) -> dict[str, Any]:
    """Ask for logits only where a label is predicted: the rest of a chat costs a vocabulary-sized product for nothing.

    The loss and its gradient are unchanged (tested); the labels are shifted here, since positions are left out. In a
    packed row the first token of a document has no label, so shifting crosses no border.
    """
    shifted = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    keep = (shifted != -100).any(0).nonzero().squeeze(-1)
    return {**inputs, "logits_to_keep": keep, "shift_labels": shifted[:, keep].contiguous()}
