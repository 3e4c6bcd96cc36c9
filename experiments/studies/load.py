"""Read a study's YAML, and check every override on the base before anything runs: a wrong path is found early."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from experiments.common.errors import ConfigError
from experiments.common.paths import SHIPPED
from experiments.common.section import Place, fault_lines, nearest
from experiments.common.yaml_values import read_yaml
from experiments.studies.config import StudyConfig, parts
from experiments.studies.space import DIMENSIONS, Scalar, probes

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig

# fields whose default depends on other ones: steps, suites
FOLLOWING = (("training", "warmup_steps"), ("evaluation", "every"))


def load_study(path: str | Path, profile: str | None = None) -> StudyConfig:
    """Read a study's YAML, or a shipped one by name (`table5`), with its base inlined. Raises ConfigError.

    profile: a name in the study's `profiles`. Its overrides are applied last, and the study's name ends in it.
    """
    path, values = read_yaml(path, SHIPPED / "studies", "study")
    return parse_study(values, profile, str(path))


def parse_study(
    values: dict[str, Any], profile: str | None = None, source: str = "study", begun: bool = False
) -> StudyConfig:
    """Check plain values, and every override on the base. Raises ConfigError with all faults of a section.

    begun: the study has trials, and settings without effect may stay.
    """
    from experiments.evaluation.flat_keys import replaces
    from experiments.studies.checks import (  # loads torch, as the lines above
        check_dimensions,
        check_fields,
        check_numbers,
        check_settings,
        check_trials,
    )
    from experiments.studies.posthoc import check_posthoc
    from experiments.studies.pruning import check_waits

    study = stored_study(values, source)
    check_fields(study, source)
    changes: dict[str, Any] = {"profiles": {}}
    given = study.overrides
    if profile is not None:
        if profile not in study.profiles:
            raise ConfigError(f"{source}: no profile {profile!r}: {nearest(profile, study.profiles)}")
        last = study.profiles[profile]
        before = {key: v for key, v in study.overrides.items() if not any(replaces(one, key) for one in last)}
        changes |= {"name": f"{study.name}-{profile}", "overrides": {**before, **last}}
        given = last if any(replaces(one, "evaluation.suites") for one in last) else {**before, **last}
    study = study.model_copy(update=changes)
    if isinstance(study.base, str):
        study = _with_base(study, study.base)
    configs = [_checked(study, picks, source) for picks in probes(study.search)]
    if "seeds" not in study.model_fields_set:
        study = study.model_copy(update={"seeds": (configs[0].seed,)})
    check_trials(study, configs, source)
    check_posthoc(study, configs, source, begun)
    if not begun:
        check_numbers(study, source)
        check_settings(study, given, configs, source)
        check_dimensions(study, configs, source)
        check_waits(study, configs, source)
    return study


def stored_study(values: dict[str, Any], source: str = "study") -> StudyConfig:
    """Read plain values that `parse_study` has checked before: the overrides are not checked again."""
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}:\n{fault_lines(error, _keys_at)}") from None


def _with_base(study: StudyConfig, name: str) -> StudyConfig:
    """Return the study with the contents of its base, all defaults written out.

    FOLLOWING are left out if the file has none and a trial would have others, as it has with `run --set`.
    """
    from experiments.config import load_config

    base, (_, given) = load_config(name).to_flat(), read_yaml(name, SHIPPED, "config file")
    searched = [getattr(d, "path", None) or key for key, d in study.search.items()]
    part = copy.deepcopy(base)
    for section, key in FOLLOWING:
        if key not in given.get(section, {}) and f"{section}.{key}" not in searched:
            del part[section][key]
    whole, followed = (study.model_copy(update={"base": values}) for values in (base, part))

    def same(picks: dict[str, Scalar]) -> bool:
        with suppress(ConfigError):
            return whole.run_config(picks, 0, 0) == followed.run_config(picks, 0, 0)
        return False

    return whole if all(map(same, probes(study.search))) else followed


def _checked(study: StudyConfig, picks: dict[str, Scalar], source: str) -> ExperimentConfig:
    """Return the config of a trial. Raises ConfigError if it is no config, or has no figure of an objective."""
    from experiments.config import parse_config
    from experiments.scorecard.names import figure_names

    said = ", ".join(f"{key}={pick}" for key, pick in picks.items())
    config = parse_config(study.values(picks), f"{source}, with {said}")
    if len(config.arms) != 1 or len(config.arms[0].learning_rates) != 1:
        raise ConfigError(
            f"{source}: a trial is one arm at one learning rate, but the base has {len(config.arms)} arms with "
            f"{sum(len(arm.learning_rates) for arm in config.arms)} learning rates in all: set `arms` under overrides"
        )
    evaluation, stream = config.evaluation, config.data.order == "sequential"
    known = figure_names(evaluation.suites, evaluation.settings("kept").names, stream, evaluation.has_floor)
    read = [*(o.figure for o in study.objectives), *(c.figure for c in study.constraints)]
    for figure in read if study.kl_budget is None else [*read, "kl"]:
        for name in parts(figure):
            if name not in known and not (name.startswith("retention/") and "lm_eval" in evaluation.suites):
                suites = ", ".join(config.evaluation.suites)
                raise ConfigError(f"{source}: no figure {name!r} with the suites {suites}: {nearest(name, known)}")
    return config


def _keys_at(place: Place) -> list[str]:
    """Return the declared keys of the section at a place in the YAML."""
    if place[:1] == ("search",):
        return list(DIMENSIONS[str(place[2])].model_fields)
    if not place:
        return list(StudyConfig.model_fields)
    annotation = StudyConfig.model_fields[str(place[0])].annotation
    sections = [annotation, *get_args(annotation)]
    return [key for section in sections if hasattr(section, "model_fields") for key in section.model_fields]
