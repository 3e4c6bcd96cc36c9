"""A model as lm_eval asks it: in the caller's dtype, in batches that fit, and with this bench's cache and template."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.evaluation.lm_eval_parts import share_requests
from experiments.evaluation.lm_eval_watch import ITS_LOGGER
from experiments.models.key_values import KeyValues
from experiments.models.reading import reading
from experiments.models.turns import turns

BATCHES = (8, 64)  # the most prompts at a time on a CPU, where more are no faster, and on a GPU


def wrapped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | Literal["auto"] = "auto"
) -> Any:
    """Wrap the model for lm_eval, which switches autocast off unless it gets the dtype."""
    from lm_eval.models.huggingface import HFLM

    logging.getLogger(ITS_LOGGER).setLevel(logging.ERROR)  # it warns of every model that is loaded
    kind = model.device.type
    found: Any = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=BATCHES[kind == "cuda"] if batch_size == "auto" else batch_size,
        mixed_precision_dtype=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        softmax_dtype=torch.float32,
    )
    if batch_size == "auto":
        halve_batches(found)
    if reading(model).caches:
        write = found._model_generate
        found._model_generate = lambda *args, **kwargs: write(*args, past_key_values=KeyValues(model), **kwargs)
    share_requests(found)
    unwritten = turns(tokenizer).unwritten if tokenizer.chat_template else ""
    if unwritten:  # ask as the model was trained
        ask = found.apply_chat_template
        found.apply_chat_template = lambda *args, **kwargs: ask(*args, **kwargs).removesuffix(unwritten)
    return found


def halve_batches(model: Any) -> None:
    """Let a model of lm_eval ask again with half as many prompts at a time if its GPU has no memory for them."""
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, kind, functools.partial(_in_smaller_batches, model, getattr(model, kind)))


def _in_smaller_batches(model: Any, ask: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    while True:
        try:
            return ask(*args, **kwargs)
        except torch.OutOfMemoryError:
            if model.batch_size_per_gpu == 1:
                raise
        model.batch_size_per_gpu //= 2
        torch.cuda.empty_cache()
