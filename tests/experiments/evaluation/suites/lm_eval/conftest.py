"""A tiny base with wide weights, two tasks of our own and their suite."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.evaluation.suites.lm_eval import HarnessSuite
from experiments.models.base import load_base
from tests.helpers.families import perturb
from tests.helpers.lm_eval_suite import harness
from tests.helpers.lm_eval_tasks import write_tasks
from tests.helpers.small_run import tiny_base


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harness")
    tiny_base(path / "base")
    write_tasks(path / "tasks")
    return path


@pytest.fixture(scope="package")
def loaded(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_base(str(folder / "base"))


@pytest.fixture(scope="package")
def tokenizer(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return loaded[1]


@pytest.fixture
def model(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedModel:
    """Wide weights: near-uniform logits would hide an error."""
    model = copy.deepcopy(loaded[0])
    perturb(model, size=0.3)
    return model.eval()


@pytest.fixture(scope="package")
def suite(folder: Path, tokenizer: PreTrainedTokenizerBase) -> HarnessSuite:
    return harness(folder, tokenizer)
