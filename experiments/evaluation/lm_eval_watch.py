"""Watch lm_eval while it measures: logits that are NaN, and prompts that it cuts, of both of which it says nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from experiments.models.reading import check_finite

logger = logging.getLogger(__name__)
ITS_LOGGER = "lm_eval.models.huggingface"


@contextmanager
def finite(model: nn.Module) -> Iterator[None]:
    """Raise NotFinite in the block for logits that are NaN: lm_eval would read a reply or a choice out of them."""
    hook = model.register_forward_hook(lambda _model, _inputs, out: check_finite(out.logits[:, -1]))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def cuts_said(task: str) -> Iterator[None]:
    """Warn once of prompts that lm_eval cut on the left in the block, since the model has too few positions."""
    theirs, cut = logging.getLogger(ITS_LOGGER), list[str]()
    before = theirs.level

    def note(record: logging.LogRecord) -> bool:
        if "runcat" in record.getMessage():
            cut.append(record.getMessage())
        return record.levelno >= before

    theirs.setLevel(logging.WARNING)
    theirs.addFilter(note)
    try:
        yield
    finally:
        theirs.removeFilter(note)
        theirs.setLevel(before)
    if cut:
        logger.warning(
            "evaluation.suites.lm_eval: %s has prompts that are longer than the model reads, and lm_eval cut their "
            "beginnings (%s): lower fewshot, or leave the task out",
            task,
            cut[0].strip(),
        )
