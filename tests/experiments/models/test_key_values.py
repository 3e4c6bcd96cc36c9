"""Keys and values in bf16 give the very logits of those in fp32; batches are as large as memory has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

import ctrl
from experiments.models import key_values
from experiments.models.generation import generate_ids
from experiments.models.key_values import KeyValues, in_halves, in_parts, row_bytes, rows_that_fit
from experiments.models.prefix import Prefix, Prompts
from experiments.models.tokens import prompt_ids
from tests.helpers.families import EVERY, build, perturb

PROMPTS = [[3, 4, 5, 6, 7], [9, 8]]


def steps(model: PreTrainedModel, cache: Any) -> tuple[list[torch.Tensor], Any]:
    """The logits of two prompts and of three tokens after them, and the cache."""
    prefix = Prefix(model)
    prefix.cache = cache
    batch = Prompts(model, PROMPTS, prefix)
    found = [batch.logits]
    for token in (1, 2, 3):
        found.append(batch.read(torch.full((2, 1), token), torch.ones(2, 1, dtype=torch.int64)))
    return found, batch.cache


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_logits_are_those_of_a_cache_in_fp32(family: str) -> None:
    model = ctrl.expand(build(family), ctrl.ControlConfig(layers=2)).eval()
    perturb(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow, cache = steps(model, KeyValues(model))
        wide, other = steps(model, DynamicCache(config=model.config))
    assert all(map(torch.equal, narrow, wide))
    assert len(cache.layers) == len(other.layers) == model.config.num_hidden_layers + 2
    assert {layer.keys.dtype for layer in cache.layers} == {layer.values.dtype for layer in cache.layers}
    assert {layer.keys.dtype for layer in cache.layers} == {torch.bfloat16}


@torch.no_grad()
def test_without_autocast_they_keep_the_model_s_own_dtype() -> None:
    _, cache = steps(build("llama"), KeyValues(build("llama")))
    assert {layer.keys.dtype for layer in cache.layers} == {torch.float32}


def test_rows_follow_from_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    assert rows_that_fit(model, 100, 128) == 128  # of a CPU nothing is known
    one = row_bytes(model, 100, 4)
    assert row_bytes(ctrl.expand(build("llama"), ctrl.ControlConfig(layers=2)), 100, 4) > one
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    for rows, want in ((7.9, 7), (500, 128), (0.1, 1)):
        monkeypatch.setattr(key_values, "free_bytes", lambda _, rows=rows: rows * one / key_values.SHARE)
        assert rows_that_fit(model, 100, 128) == want
    assert in_parts(list, [3, 4, 5], model, 100) == [3, 4, 5]


def test_a_batch_that_does_not_fit_is_written_in_halves(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replies are those of a batch that fits, also if memory ends after some tokens."""
    prompts = [prompt_ids(tokenizer, question) for question in ("a", "b c d", "e f", "g")]
    want = generate_ids(model, tokenizer, prompts, 4)
    read, sizes = Prompts.read, []

    def limited(self: Prompts, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        if len(ids) > 1 and hasattr(self, "logits"):  # after the first token
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(self, ids, real)

    monkeypatch.setattr(Prompts, "read", limited)
    assert generate_ids(model, tokenizer, prompts, 4) == want
    assert max(sizes) == 4


def test_one_row_that_does_not_fit_is_an_error() -> None:
    def write(rows: Sequence[int]) -> list[int]:
        raise torch.OutOfMemoryError(f"{rows}")

    with pytest.raises(torch.OutOfMemoryError, match=r"\[5\]"):
        in_halves(write, [5, 6, 7])
