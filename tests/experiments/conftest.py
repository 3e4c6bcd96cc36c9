"""A tiny base with the shipped model's tokenizer, its config and its evaluation."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.config import ExperimentConfig
from experiments.data.sources import ReasoningGym
from experiments.evaluation.evaluate import Suites
from experiments.models.base import load_base
from tests.helpers.small_run import draw_suites, small_config, tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def loaded(base: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loaded once: that takes half a second, a copy of the model a hundredth."""
    return load_base(base)


@pytest.fixture
def model(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedModel:
    return copy.deepcopy(loaded[0]).eval()


@pytest.fixture(scope="session")
def tokenizer(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return loaded[1]


@pytest.fixture
def plain_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The shipped model's tokenizer without its chat template."""
    tokenizer = load_base(base)[1]
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(scope="session")
def config(base: str) -> ExperimentConfig:
    return small_config(base)


@pytest.fixture
def suites(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> Suites:
    return draw_suites(
        config, tokenizer, [ReasoningGym(name="chain_sum").held_out(config.evaluation.new_items, config.seed)]
    )
