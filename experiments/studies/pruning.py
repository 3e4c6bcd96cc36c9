"""Check that a study's pruner can stop a trial before its end."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig
from experiments.studies.config import StudyConfig


def check_end(study: StudyConfig, configs: Sequence[ExperimentConfig], source: str) -> None:
    """Raise ConfigError for a pruner if each trial is measured at its end alone."""
    if study.pruner and len(study.seeds) == 1 and all(len(config.evaluation_steps) == 1 for config in configs):
        every, steps = configs[0].evaluation.every, configs[0].training.steps
        raise ConfigError(
            f"{source}: pruner: a trial is measured at its end alone (evaluation.every={every or 'null'}, {steps} "
            "steps), so none is stopped early: lower evaluation.every, or leave the pruner out"
        )


def check_waits(study: StudyConfig, configs: Sequence[ExperimentConfig], source: str) -> None:
    """Raise ConfigError for a pruner that waits for a step after the last evaluation before a trial's end."""
    if study.pruner is None:
        return
    name = study.pruner.name
    option, first = _first_step(study)
    last = max(_looks(study, config)[-2:][0] for config in configs)
    if first > last:
        raise ConfigError(
            f"{source}: pruner: {name} stops no trial before step {first} ({option}), but the last evaluation before "
            f"a trial's end is after step {last}: lower pruner.options.{option}, or leave the pruner out"
        )


def _first_step(study: StudyConfig) -> tuple[str, int]:
    """Return the option that says from which step on a trial may be stopped, and that step."""
    name, resource = study.pruner.name if study.pruner else "", _option(study, "min_resource", 1)
    rungs = min(_option(study, "min_early_stopping_rate", 0), 32)
    if name == "halving" and rungs:
        return "min_early_stopping_rate", resource * _option(study, "reduction_factor", 4) ** rungs
    if name in ("halving", "hyperband"):
        return "min_resource", resource
    return "n_warmup_steps", _option(study, "n_warmup_steps", 0)


def _option(study: StudyConfig, name: str, default: int) -> int:
    """Return a whole number of the pruner's options. Others (`auto`) and wrong ones (`check_options`) do not count."""
    value = study.pruner.options.get(name) if study.pruner else None
    return value if type(value) is int else default


def _looks(study: StudyConfig, config: ExperimentConfig) -> list[int]:
    """Return the steps after which the pruner sees a trial, counted over all seeds."""
    return [i * config.training.steps + step for i in range(len(study.seeds)) for step in config.evaluation_steps]
