"""Tokenizers of the shipped model, with its chat template and without."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.models.base import shipped_folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shipped_folder())


@pytest.fixture
def plain_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(shipped_folder())
    tokenizer.chat_template = None
    return tokenizer
