"""Export a trained arm as a folder that others can load: weights, tokenizer with its template, model card.

    control-llm export-model mlruns/runs/NAME-DIGEST --arm control-0.001 --to my-model

The default is a plain model: `AutoModelForCausalLM.from_pretrained` and every server of Hugging Face models read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from ctrl.control_model import ControlModel
from ctrl.gap import MergeGap
from ctrl.generation import keep_savable
from experiments.common.errors import ConfigError
from experiments.common.files import whole_folder
from experiments.common.printable import escaped
from experiments.config import ExperimentConfig, run_config
from experiments.evaluation.suites.text import text_windows
from experiments.methods.saving import is_peft, round_files
from experiments.models.base import model_config
from experiments.models.precision import DTYPES
from experiments.models.quantised import dequantise
from experiments.models.template import save_tokenizer
from experiments.models.tokens import end_of_turn
from experiments.posthoc.checks import check_kept
from experiments.posthoc.operations import merged_in_place, plain_model
from experiments.posthoc.run import result_file
from experiments.records import ArmResult
from experiments.reporting.table import Table
from experiments.reporting.text import figure_text, rate_text
from experiments.runs.base_records import check_tokenizer
from experiments.runs.result_file import check_trained, trained_digest, whole_results
from experiments.runs.run import errors_explained
from experiments.runs.trained import as_kept, load_arm
from experiments.scorecard.figures import FIGURES, HEADLINE

Form = Literal["merged", "trained"]
GAP_TOKENS = 2048  # of general text, on which the merged model is compared with the expanded one
CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """What was written. gap: of a merged expansion, measured on general text; None for other arms."""

    folder: Path
    form: Form
    gap: MergeGap | None


def export(
    run: Path,
    arm: str,
    learning_rate: float,
    to: Path,
    form: Form = "merged",
    dtype: str | None = None,
    say: Callable[[str], None] = print,
) -> Exported:
    """Write the model of an arm to a new folder. Raises ConfigError, RunError and DamagedError, before it writes.

    form: `merged`: a plain model, with copies merged back or an adapter folded in; `trained`: as it was trained, an
    expansion for `ctrl.load` or an adapter for PEFT, which need the base. dtype: fp32, bf16 or fp16; default: that of
    the base's files, as vLLM would round fp32 to fp16, or fp32 for what was trained alone. Over a quantised base,
    `merged` has the floats that its matrices compute with. The folder appears when it is complete.
    """
    run = run.resolve()
    file = result_file(run, arm, learning_rate)
    check_kept(run)
    if to.exists():
        raise ConfigError(f"--to {to} exists: name a new folder")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    (result,), trained = whole_results([file]), {file.parent: trained_digest(file.parent)}
    result = as_kept(result, file.parent)
    config = run_config(run)
    base, own = config.load_base()
    check_tokenizer(run, own)
    model = load_arm(dequantise(base) if form == "merged" else base, file.parent).eval()
    check_trained(trained)  # the card has the figures of these weights
    tokenizer = config.load_tokenizer()
    if form == "trained" and not isinstance(model, ControlModel) and not is_peft(model):
        raise ConfigError(f"--form trained: arm {arm!r} trained weights of the model itself: use --form merged")
    gap = None
    if form == "merged":
        say("merging ...")
        model, gap = _plain(model, tokenizer, arm)
    dtype = dtype or (stored_dtype(config) if form == "merged" else "fp32")
    if form == "merged":
        model = model.to(DTYPES[dtype])
    _stops(model, tokenizer)
    with errors_explained(to.parent), whole_folder(to) as part:
        model.save_pretrained(part)
        if form == "trained":
            round_files(part, dtype)
        save_tokenizer(tokenizer, part)
        (part / CARD).write_text(card(config, result, form, gap, dtype), encoding="utf-8")
    return Exported(to, form, gap)


def stored_dtype(config: ExperimentConfig) -> str:
    """Return the dtype of the base model's files, a name of DTYPES; fp32 if its config does not say one of them."""
    stored = model_config(config.base_model, config.trust_remote_code).dtype
    return next((name for name, dtype in DTYPES.items() if dtype == stored), "fp32")


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let `generate` stop where trained replies end, at the template's end of turn, besides the base's own ends."""
    settings: Any = model.generation_config
    own = settings.eos_token_id
    known = list(own) if isinstance(own, list | tuple) else [own] if own is not None else []
    if end_of_turn(tokenizer) not in known:
        settings.eos_token_id = [*known, end_of_turn(tokenizer)]
        keep_savable(settings)


def _plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arm: str
) -> tuple[PreTrainedModel, MergeGap | None]:
    """Merge or fold in what was trained. Raises ConfigError for an interpolation without a merged form."""
    if not isinstance(model, ControlModel):
        return plain_model(model), None
    windows = text_windows(tokenizer, GAP_TOKENS)
    batches: list[dict[str, Tensor]] = [{"input_ids": torch.tensor([window])} for window in windows]
    try:
        return merged_in_place(model, None, batches)
    except ctrl.ConfigError as error:
        raise ConfigError(f"arm {arm!r} has no plain form: {error}; --form trained writes it as it is") from error


def card(
    config: ExperimentConfig, result: ArmResult, form: Form, gap: MergeGap | None, dtype: str | None = None
) -> str:
    """Return the model card: what it is, what it learned and forgot, and how to load it."""
    base = escaped(config.base_model)
    rows = tuple(
        (FIGURES[name].title, figure_text(result.scorecard, name), FIGURES[name].meaning)
        for name in HEADLINE
        if name in result.scorecard
    )
    arm = f"{escaped(result.arm)} (method {escaped(result.method)}) at learning rate {rate_text(result.learning_rate)}"
    loaded = {
        "merged": 'AutoModelForCausalLM.from_pretrained("this folder")',
        "trained": f'ctrl.load("{base}", "this folder")  # or PeftModel.from_pretrained(base, ...) for an adapter',
    }
    halves = dict.fromkeys(one for one in (config.training.keep_dtype, dtype) if one in ("bf16", "fp16"))
    rounded = f" Its weights were rounded to {', then to '.join(halves)} afterwards." if halves else ""
    lines = [
        f"# {escaped(config.name)}: {arm}",
        "",
        f"Trained from {base} on {escaped(config.data.label)}, {result.steps} steps.",
        "",
        Table("Figures", ("figure", "value", "meaning"), rows).markdown(),
        "",
        f"Brackets: 95 % intervals. Measured on the model as it was trained.{_gap_text(gap)}{rounded}",
        "",
        "```python",
        loaded[form],
        "```",
        "",
    ]
    return "\n".join(lines)


def _gap_text(gap: MergeGap | None) -> str:
    if gap is None or not math.isfinite(gap.kl):
        return ""
    return (
        f" Merging changed its predictions on general text by a KL of {gap.kl:.2g} nats per token (largest difference "
        f"of a logit: {gap.max_logit_difference:.2g})."
    )


def exported_text(done: Exported) -> list[str]:
    """Say in lines what was written and how to use it."""
    lines = [f"written: {done.folder}"]
    if done.gap is not None:
        lines.append(f"merge gap: KL {done.gap.kl:.2g} nats per token to the expanded model, on general text")
    if done.form == "merged":
        lines.append(f"serve it: vllm serve {done.folder}; or load it with transformers")
    return lines
