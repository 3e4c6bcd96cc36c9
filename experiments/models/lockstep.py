"""Let processes that hold shards of one model (FSDP 2) read different texts.

Each pass of one process gathers every layer from all of them, so all must make equally many passes. Before a pass they
ask each other whether one is due; a process that has finished its texts makes an empty pass for those that have not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel


@contextmanager
def in_step(model: PreTrainedModel) -> Iterator[Callable[[], None]]:
    """Yield what each process calls after its own passes: it returns when all processes have called it.

    Inside the block every process calls it equally often. What it passes through the model is one token, whose result
    is dropped.
    """
    device = model.device
    own = True

    def due(here: bool) -> bool:
        asked = torch.tensor([int(here)], device=device)
        dist.all_reduce(asked)
        return bool(asked.item())

    def before(*_: Any) -> None:
        if own:
            due(True)

    @torch.no_grad()
    def wait() -> None:
        nonlocal own
        own = False
        while due(False):
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
        own = True

    # before FSDP's own, which gathers
    hook = model.register_forward_pre_hook(before, prepend=True)
    found: Any = model
    found.generate = functools.partial(found.generate, synced_gpus=False)  # its own way to keep step, of equal texts
    try:
        yield wait
    finally:
        hook.remove()
        del found.generate
