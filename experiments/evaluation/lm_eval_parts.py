"""Ask a model of lm_eval in parts, which the processes of a launch share.

lm_eval shares documents among processes by itself, but then batches depend on their number, and so do the last digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from experiments.models.sharing import each, in_order

KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
PART = 128  # requests


def share_requests(model: Any) -> None:
    """Let a model of lm_eval answer its requests part by part. Each process of a launch returns all answers."""
    for kind in KINDS:
        setattr(model, kind, functools.partial(_in_parts, getattr(model, kind)))


def parts_of(requests: Sequence[Any]) -> list[list[int]]:
    """Return the indices of requests in parts of PART: the longest first, and those of one prompt side by side."""
    order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].args[0]), requests[i].args[0]))
    return [order[start : start + PART] for start in range(0, len(order), PART)]


def _in_parts(ask: Callable[..., list[Any]], requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[Any]:
    """Return the answers to requests in their order."""

    def answers(part: list[int]) -> list[Any]:
        torch.manual_seed(part[0])  # a task may draw its replies: then they do not depend on who writes them
        return ask([requests[i] for i in part], *args, **kwargs)

    parts = parts_of(requests)
    return in_order(parts, each(parts, answers))
