"""Load the trained models of a finished experiment, and compare their replies, for notebooks and scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from experiments.common.files import read_note
from experiments.config import ExperimentConfig, run_config
from experiments.methods.saving import load_onto
from experiments.models.generation import generate_replies
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.records import ArmResult, Estimate
from experiments.runs.base_records import check_tokenizer, check_weights
from experiments.runs.result_file import RESULT, check_files
from experiments.scorecard.figures import GAINS

TRAINED, KEPT = "trained", "kept.json"  # of an arm: the folder of its weights, and in it which step they are of


def best_step(figures: Mapping[int, Mapping[str, Estimate]]) -> int:
    """Return the evaluation with the highest gain + retention, of equals the latest: `training.keep: best`.

    figures: of each evaluation by its step. A figure that was not measured, or is no number, counts as 0.
    """
    return max(figures, key=lambda step: (_worth(figures[step]), step))


def _worth(card: Mapping[str, Estimate]) -> float:
    gain = next((card[name].value for name in GAINS if name in card), 0.0)
    kept = card["retention"].value if "retention" in card else 0.0
    return sum(value for value in (gain, kept) if math.isfinite(value))


def as_kept(result: ArmResult, folder: Path) -> ArmResult:
    """Return an arm's result with the figures of the step whose weights were kept. folder: of the arm."""
    step = read_note(folder / TRAINED / KEPT).get("step", result.steps)
    point = next((point for point in result.trajectory if point["step"] == step), None)
    if step == result.steps or point is None:
        return result
    return replace(result, steps=step, scorecard={name: value for name, value in point.items() if name != "step"})


def load_trained(folder: Path, arm: str, learning_rate: float) -> PreTrainedModel:
    """Load the trained model of an arm. folder: of the run. Raises FileNotFoundError, which names the existing arms,
    and DamagedError for other weights than the arm trained.
    """
    config = run_config(folder)
    trained = folder / "arms" / f"{arm}-{learning_rate:g}" / TRAINED
    if not trained.is_dir():
        found = sorted(p.parent.name for p in (folder / "arms").glob("*/trained"))
        raise FileNotFoundError(f"{folder} holds no trained model {arm}-{learning_rate:g}, but: {', '.join(found)}")
    return load_arm(config.load_base()[0], trained.parent)


def load_arm(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load what an arm trained onto a fresh base model, which is changed. folder: of the arm. Raises DamagedError."""
    check_files(folder / RESULT, trained=True)
    return load_onto(base, folder / TRAINED)


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
    precision: Literal["auto", "bf16", "fp32"] = "auto",
) -> pd.DataFrame:
    """Return greedy replies of an expanded model at each alpha (`ctrl.at_alpha`): one row for each prompt.

    precision: that of the run; in another one the replies may differ from those that it measured.
    """
    columns = {}
    for alpha in alphas:
        with ctrl.at_alpha(model, alpha), evaluating(model, Precision(precision)):
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
