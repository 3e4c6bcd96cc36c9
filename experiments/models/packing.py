"""Test whether a model keeps the documents of one row apart when their positions restart."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from experiments.models.modes import evaluating
from experiments.models.precision import Precision

TOKENS = 12  # of each of the two documents in the probe
SAME = 1e-4  # largest change by rounding, as a share of the largest logit


def documents_apart(model: PreTrainedModel, length: int = 0) -> bool:
    """Whether another first document leaves the logits of the second one in the row unchanged.

    transformers finds documents by their position_ids, but not in all architectures: recurrent layers never look at
    them, and some models build their own mask. length: of the rows in tokens; Llama 4 scales attention by the index in
    the row from `floor_scale` on, too late for the probe.
    """
    config = model.config.get_text_config()
    if getattr(config, "attn_temperature_tuning", False) and length > getattr(config, "floor_scale", length):
        return False
    size = int(config.vocab_size)
    ids = torch.arange(2 * TOKENS).repeat(2, 1)
    ids[1, :TOKENS] += 2 * TOKENS
    positions = torch.arange(TOKENS).repeat(2, 2)
    with evaluating(model, Precision("fp32")):
        try:
            logits = model(
                input_ids=(ids % size).to(model.device), position_ids=positions.to(model.device), use_cache=False
            ).logits
        except (TypeError, ValueError):  # it takes no positions
            return False
    one, other = logits[:, TOKENS:].float()
    return bool((one - other).abs().max() <= SAME * logits.abs().max())
