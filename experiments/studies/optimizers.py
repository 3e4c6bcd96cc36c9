"""Make Optuna's samplers and pruners from their names in a study's YAML, and compute importances."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.trial import TrialState

from experiments.common.errors import ConfigError
from experiments.common.section import nearest
from experiments.studies.config import Named, StudyConfig

SAMPLERS: dict[str, Any] = {
    "grid": optuna.samplers.RandomSampler,  # not used: all cells are queued when the study is created
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "gp": optuna.samplers.GPSampler,
}
PRUNERS: dict[str, Any] = {
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "threshold": optuna.pruners.ThresholdPruner,
}


def check_options(config: StudyConfig) -> None:
    """Raise ConfigError if the sampler or the pruner does not accept its options."""
    for kind, build, table in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        named = getattr(config, kind)
        if named is None:
            continue
        known = [name for name in inspect.signature(table[named.name]).parameters if name != "seed"]
        for option in named.options:
            if option not in known:
                raise ConfigError(f"{kind}.options.{option}: {named.name} has no such option; {nearest(option, known)}")
        for option, value in named.options.items():
            if needed := _needed(inspect.signature(table[named.name]).parameters[option], value):
                raise ConfigError(f"{kind}.options.{option}: {needed} is needed, but got {value!r}")
        try:
            build(config)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{kind} {named.name!r}: {error}") from error


def _needed(option: inspect.Parameter, value: Any) -> str:
    """Say what an option needs in place of a value, by its default; empty if the value may do. Optuna fails late."""
    default = option.default
    if (callable(default) and default is not inspect.Parameter.empty) or option.name.endswith("_func"):
        return "a function, which YAML cannot hold (leave it out),"
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "" if type(value) is int and value >= 0 else "a whole number from 0 on"
    if isinstance(default, float):
        return "" if type(value) in (int, float) and math.isfinite(value) else "a number"
    return "a number or a text" if isinstance(value, list | dict) else ""


def sampler(config: StudyConfig, number: int = 0) -> Any:
    """Make the sampler of one trial. Its seed depends on the number: workers that start together draw differently."""
    return SAMPLERS[config.sampler.name](seed=config.sampler.seed + number, **config.sampler.options)


def pruner(config: StudyConfig) -> Any:
    """Make the study's pruner; without one in the YAML, the one that never prunes."""
    return PRUNERS[config.pruner.name](**config.pruner.options) if config.pruner else optuna.pruners.NopPruner()


def waiting(config: StudyConfig, trials: int | None) -> Iterator[str]:
    """Say of a sampler and a pruner that look at none of so many trials: both wait until some are complete."""
    named: dict[str, tuple[Named, Any, str, str]] = {
        "sampler": (config.sampler, sampler(config), "draws all", "at random")
    }
    if config.pruner:
        named["pruner"] = (config.pruner, pruner(config), "stops none of", "early")
    for kind, (given, made, does, how) in named.items():
        for option in ("n_startup_trials", "population_size"):
            needed = getattr(made, f"_{option}", 0)
            if trials is not None and trials <= needed:
                yield (
                    f"{kind} {given.name!r} {does} {trials} trials {how}: it waits until {option}={needed} are "
                    f"complete. Lower that under {kind}.options"
                )


def importances(study: optuna.Study, config: StudyConfig) -> dict[str, dict[str, float]]:
    """Return objective -> dimension -> share of the objective's variance (fANOVA).

    Empty below four complete trials, and if they differ in one dimension alone, which then explains all.
    """
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    found: dict[str, dict[str, float]] = {}
    tried = {key: {t.params.get(key) for t in complete} for key in config.search}
    if sum(len(values) > 1 for values in tried.values()) < 2:
        return found
    for i, objective in enumerate(config.objectives):
        if len(complete) >= 4 and len({t.values[i] for t in complete}) > 1:
            evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=16, seed=0)
            found[objective.figure] = optuna.importance.get_param_importances(
                study,
                evaluator=evaluator,
                target=lambda trial, i=i: trial.values[i],  # type: ignore[misc]
            )
    return found
