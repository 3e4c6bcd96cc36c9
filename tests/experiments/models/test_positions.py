"""The most tokens that a model can read: found by its tables, against a sequence that is one token longer."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from experiments.models.positions import embedding_rows, positions
from tests.helpers.byte_level import byte_llama
from tests.helpers.families import build
from tests.helpers.readers import build_other

MOST = {
    "gpt2": "n_positions",
    "gptj": "n_positions",
    "codegen": "n_positions",
    "openai": "n_positions",
    "mpt": "max_seq_len",
}


def built(name: str) -> PreTrainedModel:
    return build_other(name, **{MOST.get(name, "max_position_embeddings"): 40})


def reads(model: PreTrainedModel, tokens: int) -> bool:
    try:
        with torch.no_grad():
            model(input_ids=torch.ones(1, tokens, dtype=torch.int64), use_cache=False)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", ["gpt2", "gptj", "codegen", "gpt_neo", "opt", "openai", "mpt"])
def test_a_table_of_positions_is_a_limit(name: str) -> None:
    model = built(name)
    assert positions(model) == 40
    assert reads(model, 40)
    assert not reads(model, 41)


@pytest.mark.parametrize("name", ["falcon", "gpt_oss", "lfm2", "xglm"])
def test_computed_positions_are_none(name: str) -> None:
    model = built(name)
    assert positions(model) is None
    assert reads(model, 41)


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_models_without_positions(name: str) -> None:
    assert positions(build_other(name)) is None


def test_the_families() -> None:
    assert positions(build("gpt2")) == 128
    assert all(positions(build(family)) is None for family in ("llama", "gemma2", "gpt_neox"))


def test_embedding_rows() -> None:
    assert embedding_rows(byte_llama(77)) == 77
