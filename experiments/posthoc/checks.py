"""Check what an operation is asked for, before a model is loaded or a run is opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ctrl.checkpoint import CONFIG_FILE
from ctrl.config import all_stacked
from ctrl.interpolation import INTERPOLATIONS
from experiments.common.errors import ConfigError
from experiments.config import run_config
from experiments.methods.config import ArmConfig
from experiments.methods.saving import ADAPTER_CONFIG
from experiments.methods.tuning import Control

SHARES = ("wise", "lines", "merge", "dial_depth")  # alpha is a share, from 0 to 1
DIALS = ("dial", "dial_depth")
OF_SEVERAL = ("task_vectors", "ensemble")  # they take other arms too
LARGEST = 100.0  # alpha of the others, which may go beyond the trained weights


def check_operation(operation: str, arm: Path, alphas: Sequence[float], others: Sequence[Path] = ()) -> None:
    """Raise ConfigError for alphas or other arms that an operation cannot use. arm: its folder in the run."""
    low, high = (0.0, 1.0) if operation in SHARES else (-LARGEST, LARGEST)
    wrong = [alpha for alpha in alphas if not (math.isfinite(alpha) and low <= alpha <= high)]
    if wrong:
        raise ConfigError(f"--alphas {wrong[0]:g}: alpha of {operation} is a number from {low:g} to {high:g}")
    check_distinct(alphas)
    for alpha in alphas or (None,):
        check_arm(operation, arm, alpha)
    if others and operation not in OF_SEVERAL:
        raise ConfigError(
            f"--with names arms to add, which {operation} does not do: leave it out, or use {' or '.join(OF_SEVERAL)}"
        )
    check_others(operation, arm, others)
    if operation == "ensemble" and alphas:
        raise ConfigError(f"--alphas {alphas[0]:g}: ensemble has no shares, leave them out")
    if operation == "ensemble":
        check_greedy(arm.parents[1])
    if operation == "task_vectors" and not (others or alphas):
        raise ConfigError(
            "task_vectors adds arms, or scales one: name the folders of the others, --with RUN/arms/NAME-LR, or give "
            "--alphas"
        )


def check_greedy(run: Path) -> None:
    """Raise ConfigError for a run whose replies are drawn: an ensemble has no cache, and writes greedy ones alone."""
    evaluation = run_config(run).evaluation
    temperature = evaluation.settings("new").temperature if "new" in evaluation.suites else 0
    if temperature:
        raise ConfigError(
            f"ensemble writes greedy replies alone, and those of {run.name} are drawn (evaluation.suites.new: "
            f"temperature {temperature:g}): use another operation, or run the config again without a temperature"
        )


def check_others(operation: str, arm: Path, others: Sequence[Path]) -> None:
    """Raise ConfigError for other arms that are there twice, are no trained arms, or are of another base model."""
    known = {arm.resolve(): f"{arm.name}, the arm of --arm"}
    for folder in others:
        if said := known.get(folder.resolve()):
            raise ConfigError(
                f"--with {folder} is {said}: each arm counts once, so leave it out (task_vectors at --alphas 2 doubles "
                "one arm)"
            )
        known[folder.resolve()] = "named twice"
        if not (folder / "trained").is_dir():
            raise ConfigError(f"{folder} is not the folder of a trained arm: RUN/arms/NAME-LR, with `trained` in it")
        own, theirs = run_config(arm.parents[1]), run_config(folder.parents[1])
        if theirs.base_model != own.base_model:
            raise ConfigError(f"{operation} needs one base model, but {folder} was trained on {theirs.base_model!r}")
        if theirs.quantised != own.quantised:
            raise ConfigError(
                f"{operation} needs one base model, but that of {folder} has quantised: {theirs.quantised}, and this "
                f"one {own.quantised}"
            )


def as_printed(alpha: float) -> float:
    """Return alpha as names of folders have it, with six digits: what is measured is what the name says."""
    return float(f"{alpha:g}")


def check_distinct(alphas: Sequence[float]) -> None:
    """Raise ConfigError for alphas that would share a folder: they are printed with six digits there."""
    names = [f"{alpha:g}" for alpha in alphas]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--alphas must differ in six digits, but {', '.join(twice)} is there more than once")


def check_arm(operation: str, arm: Path, alpha: float | None) -> None:
    """Raise ConfigError for an operation that an arm cannot have at an alpha, by the files that it saved."""
    expanded, adapted = ((arm / "trained" / name).is_file() for name in (CONFIG_FILE, ADAPTER_CONFIG))
    if operation in ("wise", "lines") and alpha is None:
        whose = "tuned model's" if operation == "wise" else "first layer's"
        raise ConfigError(f"{operation} needs the {whose} shares: --alphas 0.25 0.5 0.75")
    if operation in DIALS and (alpha is None or not expanded):
        raise ConfigError(
            f"{operation} needs an expanded arm and shares of its copies: --alphas 0.25 0.5 0.75 (arm {arm.name!r})"
        )
    if operation == "merge" and not expanded and (alpha is not None or not adapted):
        end = ", so --alphas has no meaning for it" if adapted else " and has no adapter: use wise"
        raise ConfigError(f"merge: arm {arm.name!r} is not expanded{end}")


def without_form(operation: str, arm: ArmConfig, alpha: float | None) -> str:
    """Return why an arm of this config will have no such operation, before it is trained; an empty text if it may."""
    tuning = arm.build().tuning
    if not isinstance(tuning, Control):
        if operation in DIALS:
            return f"{operation} needs an expanded arm, but {arm.name!r} is not: use wise"
        if operation == "merge" and not tuning.adapts:
            return f"merge: arm {arm.name!r} is not expanded and has no adapter: use wise"
        if operation == "merge" and alpha is not None:
            return f"merge: arm {arm.name!r} is not expanded, so alpha has no meaning for it: leave it out, or use wise"
        return ""
    config, mix = tuning.config, INTERPOLATIONS[tuning.config.interpolation]
    if operation != "merge" and config.structure != "concat":
        return f"{operation} needs copies next to their layers, but arm {arm.name!r} has stacked ones: use merge"
    if operation == "dial_depth" and mix.per_token:
        return f"dial_depth scales each layer's alpha, but in arm {arm.name!r} it depends on the token: use dial"
    if operation not in DIALS and ((mix.merged is None and not all_stacked(config)) or config.norm_mix != 0):
        what = f"interpolation {config.interpolation!r}" if mix.merged is None else f"norm_mix {config.norm_mix!r}"
        return f"{operation} makes a plain model, which {what} of arm {arm.name!r} has not: use dial"
    return ""


def check_kept(run: Path) -> None:
    """Raise ConfigError for a run whose trained weights were not kept."""
    if run_config(run).training.keep == "none":
        raise ConfigError(
            f"{run.name} kept no trained weights (training.keep: none): set it to last, delete the folders in "
            f"{run / 'arms'}, and run the config again"
        )
