"""A new task of sums and one of texts, and what a suite measures."""

from __future__ import annotations

import functools

from transformers import PreTrainedModel

from experiments.data.items import NewTask, NewText
from experiments.data.sources import ReasoningGym
from experiments.evaluation.suite import PreparedSuite
from experiments.models.modes import evaluating
from experiments.records import Record
from tests.helpers.option_scores import FP32

LONG = "The quick brown fox jumps over the lazy dog. " * 60  # more than two windows
NOTES = NewText("notes", ("A short note.", LONG))


@functools.cache
def sums() -> NewTask:
    return ReasoningGym(name="chain_sum").held_out(4, 0)


def measured(suite: PreparedSuite, model: PreTrainedModel) -> tuple[list[Record], list[int]]:
    counts: list[int] = []
    with evaluating(model, FP32):
        return list(suite.measure(model, counts.append)), counts
