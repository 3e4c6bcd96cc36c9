"""The end of the path: the model as plain weights in safetensors files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from ctrl.control_model import ControlModel
from ctrl.layer import expanded_layers
from experiments.common.errors import ConfigError
from experiments.common.files import read_note, whole_folder, write_json
from experiments.common.hashing import folder_digests
from experiments.evaluation.suites.text import text_windows
from experiments.measure.base import Base
from experiments.measure.files import content
from experiments.measure.models import Model
from experiments.models.base import stored_base
from experiments.models.template import save_tokenizer
from experiments.posthoc.operations import plain_model

GATE_TOKENS = 1024  # of general text, for a gate that depends on the token


def endpoint(model: Model, base: Base, folder: Path, say: Callable[[str], None]) -> Path:
    """Return the folder of the model, or one below `folder` with its plain form: an adapter or expansion merged.

    It is written once, and again if the model, its base or what was written has changed. Raises ConfigError for an
    expansion that cannot be merged (stacked copies).
    """
    last = model.checkpoints[-1]
    if last.kind.whole:
        return last.folder
    target, note = folder / "merged", folder / "merged.json"
    made_from = {"model": last.content, "base": content(base.folder)}
    if target.is_dir() and read_note(note) == {**made_from, "files": folder_digests(target)}:
        return target
    shutil.rmtree(target, ignore_errors=True)
    say(f"merging the {last.kind.name} with its base ...")
    loaded = last.kind.load(last.folder, base)
    plain = _merged(loaded, model.tokenizer, model.address)
    dtype: Any = stored_base(str(base.folder), base.remote_code).dtype
    with whole_folder(target, "--out") as writing:
        plain.to(dtype).save_pretrained(writing)
        save_tokenizer(model.tokenizer, writing)
    write_json(note, {**made_from, "files": folder_digests(target)})
    return target


def _merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, address: str) -> PreTrainedModel:
    batches: list[dict[str, Tensor]] = []
    if isinstance(model, ControlModel):
        stacked = [layer.index for layer in expanded_layers(model) if layer.interpolation is None]
        if stacked:
            raise ConfigError(
                f"--model {address}: its copies {stacked} are stacked: the base has no such layers to mix with"
            )
        windows = text_windows(tokenizer, GATE_TOKENS)
        batches = [{"input_ids": torch.tensor([window], device=model.device)} for window in windows]
    try:
        return plain_model(model, batches)
    except (ctrl.ConfigError, ConfigError) as error:
        raise ConfigError(f"--model {address}: it cannot be merged into plain weights: {error}") from error
