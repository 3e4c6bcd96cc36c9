"""Put a model into evaluation mode for a block of code."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from experiments.models.precision import Precision


@contextmanager
def evaluating(model: PreTrainedModel, precision: Precision) -> Iterator[None]:
    """Evaluate inside the block: evaluation mode, no gradients, the run's precision.

    Afterwards the modes of all modules, the weights and all random states are as before.
    """
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(random_states_kept())
        stack.callback(_set_modes, modes)
        model.eval()
        stack.enter_context(torch.no_grad())
        stack.enter_context(precision.autocast())
        stack.enter_context(precision.held(model))
        yield


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


@contextmanager
def random_states_kept(gpus: bool = True) -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch after the block. gpus: those of all GPUs too."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=None if gpus else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
