"""The best model of a training, in the folder `best` of its measurements: written whole, and found after a kill."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

import ctrl
from ctrl.control_model import ControlModel
from experiments.common.errors import ConfigError
from experiments.common.files import PART, read_json, write_json
from experiments.scorecard.figures import GAINS

BEST, NOTE = "best", "forgetting.json"


def write_best(folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase, note: Mapping[str, Any]) -> None:
    """Save a model in place of the best one so far. note: its step and figures, and the training's id."""
    part = _part(folder)
    shutil.rmtree(part, ignore_errors=True)
    ctrl.save(model, part) if isinstance(model, ControlModel) else model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    write_json(part / NOTE, note)  # last: now it is whole
    _settle(folder)


def merit(figures: Mapping[str, float], step: int) -> float:
    """Return what is compared to find the best: the gain, or the step if there is no new task."""
    return next((figures[name] for name in GAINS if name in figures), float(step))


def best_of(folder: Path, step: int, training: str = "") -> tuple[float, int] | None:
    """Return value and step of the best model on disk; None if it is of a later step, or of another training."""
    _settle(folder)
    found = read_json(folder / BEST / NOTE)
    own = found.get("training", training) == training  # not there in earlier versions
    return (merit(found, found["step"]), found["step"]) if found and own and found["step"] <= step else None


def check_best(folder: Path) -> None:
    """Raise ConfigError if the folder `best` is not of a training that was measured: it would be replaced."""
    best = folder / BEST
    own = any((place / NOTE).is_file() for place in (best, _part(folder)))  # a kill may leave the new one alone
    if best.exists() and not own:
        raise ConfigError(
            f"{best} was not kept by a ForgettingCallback, and keep_best=True would replace it: move it, or take "
            "another folder, ForgettingCallback(folder=...)"
        )


def _part(folder: Path) -> Path:
    return folder / (BEST + PART)


def _settle(folder: Path) -> None:
    """Give a whole new best model its name. A kill at any moment leaves the old one or the new one, or both."""
    part, target = _part(folder), folder / BEST
    if (part / NOTE).is_file():
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
