"""Find the sizes of a model's tables: the most tokens that it can read at once, and the ids that it knows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

OFFSET = 8  # rows that a table of positions may have besides (OPT's first two)


def embedding_rows(model: PreTrainedModel) -> int:
    """Return the number of token ids that the model has an embedding of."""
    table: Any = model.get_input_embeddings()
    return len(table.weight)


def trained_positions(model: PreTrainedModel) -> int | None:
    """Return the number of positions that the model's config names; None if it names none.

    A model that computes positions reads longer texts too, but was not trained on any.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def alike_up_to(model: PreTrainedModel) -> int | None:
    """Return the number of positions up to which a text is read as it would be alone; None for any number.

    RoPE of the types longrope and dynamic has other frequencies for all texts of a pass if one of them is longer.
    """
    given = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [
        one for one in (given, *given.values()) if isinstance(one, Mapping)
    ]  # some have one for each kind of layer
    changing = [one for one in kinds if any(kind in str(one.get("rope_type")) for kind in ("longrope", "dynamic"))]
    limits = (one.get("original_max_position_embeddings") or trained_positions(model) for one in changing)
    return min((limit for limit in limits if limit), default=None)


def positions(model: PreTrainedModel) -> int | None:
    """Return the number of positions that the model has a table of; None if it computes them, for any length.

    A longer sequence would end in an IndexError, and on a GPU in an error after which nothing works.
    """
    config, most = model.config.get_text_config(), trained_positions(model)
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    if most is not None:
        grows = {name for name, module in model.named_modules() if hasattr(module, "make_weights")}  # XGLM's sines
        tensors = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in grows}
        rows = [len(t) for name, t in tensors.items() if t.dim() == 2 and ("pos" in name or "wpe" in name)]
        return most if any(most <= count <= most + OFFSET for count in rows) else None
    biased = getattr(config, "max_seq_len", None)  # MPT's biases of distances
    return biased if isinstance(biased, int) and not any("inv_freq" in name for name in tensors) else None
