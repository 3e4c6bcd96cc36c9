"""Load the trained models of a finished experiment, and compare their replies, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from experiments.config import ExperimentConfig, run_config
from experiments.methods.saving import load_onto
from experiments.models.generation import generate_replies
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.runs.base_records import check_tokenizer, check_weights
from experiments.runs.result_file import RESULT, check_files


def load_trained(folder: Path, arm: str, learning_rate: float) -> PreTrainedModel:
    """Load the trained model of an arm. folder: of the run. Raises FileNotFoundError, which names the existing arms,
    and DamagedError for other weights than the arm trained.
    """
    config = run_config(folder)
    trained = folder / "arms" / f"{arm}-{learning_rate:g}" / "trained"
    if not trained.is_dir():
        found = sorted(p.parent.name for p in (folder / "arms").glob("*/trained"))
        raise FileNotFoundError(f"{folder} holds no trained model {arm}-{learning_rate:g}, but: {', '.join(found)}")
    return load_arm(config.load_base()[0], trained.parent)


def load_arm(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load what an arm trained onto a fresh base model, which is changed. folder: of the arm. Raises DamagedError."""
    check_files(folder / RESULT, trained=True)
    return load_onto(base, folder / "trained")


def replies(
    folder: Path, arms: Sequence[tuple[str, float]], prompts: Sequence[str], max_new_tokens: int = 48
) -> pd.DataFrame:
    """Return greedy replies: one row for each prompt, one column for each model, the base model first.

    Raises ConfigError if the base model is another one than when the arms were trained.
    """
    config = run_config(folder)
    base, tokenizer = config.load_base()
    check_weights(folder, base)
    check_tokenizer(folder, tokenizer)
    columns = {"base": _replies(config, base, tokenizer, prompts, max_new_tokens)}
    for arm, rate in arms:
        model = load_trained(folder, arm, rate)
        columns[f"{arm} {rate:g}"] = _replies(config, model, tokenizer, prompts, max_new_tokens)
    return pd.DataFrame(columns, index=pd.Index(prompts, name="prompt"))


def replies_at(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    alphas: Sequence[float],
    max_new_tokens: int = 24,
) -> pd.DataFrame:
    """Return greedy replies of an expanded model at each alpha (`ctrl.at_alpha`): one row for each prompt."""
    columns = {}
    for alpha in alphas:
        with ctrl.at_alpha(model, alpha), evaluating(model, Precision("auto")):
            columns[f"alpha {alpha:g}"] = list(generate_replies(model, tokenizer, list(prompts), max_new_tokens))
    return pd.DataFrame(columns, index=pd.Index(prompts, name="prompt"))


def _replies(
    config: ExperimentConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    with evaluating(model, Precision(config.precision)):
        return list(generate_replies(model, tokenizer, list(prompts), max_new_tokens))
