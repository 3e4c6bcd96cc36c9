"""A config with two local tasks, and the records that a suite measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.config import ExperimentConfig, parse_config
from experiments.evaluation.suites.lm_eval import HarnessSuite
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.records import Record
from tests.helpers.small_run import make_suite, small_values

FP32 = Precision("fp32")


def config_of(folder: Path, **settings: Any) -> ExperimentConfig:
    values = small_values(str(folder / "base"))
    local = {"new": ["sums"], "kept": ["colours"], "include_path": str(folder / "tasks")}
    values["evaluation"]["suites"] = {"lm_eval": local | settings}
    return parse_config(values)


def harness(folder: Path, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> HarnessSuite:
    return make_suite(HarnessSuite, config_of(folder, **settings), tokenizer)


def measured(suite: HarnessSuite, model: PreTrainedModel, precision: Precision = FP32) -> list[Record]:
    with evaluating(model, precision):
        return list(suite.measure(model, lambda count: None))
