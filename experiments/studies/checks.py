"""Check what the trials of a study will do, before its first one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig
from experiments.evaluation.flat_keys import FLAT, replaces
from experiments.runs.checks import check_run
from experiments.runs.prepared import read_inputs
from experiments.runs.unused import unused_fields
from experiments.scorecard.figure import Figure
from experiments.scorecard.figures import FIGURES
from experiments.studies.config import Constraint, Objective, ReportConfig, StudyConfig, parts
from experiments.studies.pruning import check_end
from experiments.studies.space import Float, probes

DIRECTIONS = {"higher": "maximize", "lower": "minimize"}
ARM = re.compile(r"^arm [^:]*: ")  # with which a fault begins; each trial may have another
NO_EFFECT = "(?:has no effect|is not read|is read by no arm|splits text files)"  # what faults say of a field
SHARE = re.compile(r"data\.replay|arms\.\d+\.replay")


def check_fields(study: StudyConfig, source: str) -> None:
    """Raise ConfigError for a value that has no effect, such as one that another replaces in each trial."""
    if wrong := next(_replaced(study), ""):
        raise ConfigError(f"{source}: {wrong}: leave one of both out")
    if study.report.law is None and study.report.epsilon != ReportConfig().epsilon:
        raise ConfigError(
            f"{source}: report.epsilon has no effect without report.law, the dimension that is the replayed share"
        )


def _replaced(study: StudyConfig) -> Iterator[str]:
    """Describe the values that are replaced, in the order of `StudyConfig.values`: overrides, arms, the others."""
    named = {
        f"{key}, {name}": arm for key, d in study.search.items() if d.kind == "arms" for name, arm in d.arms.items()
    }
    groups = {
        "overrides": study.overrides,
        **{f"profile {name}": keys for name, keys in study.profiles.items()},
        **named,
    }
    for where, keys in groups.items():
        yield from (f"{where}: {later!r} replaces {first!r}" for first, later in _pairs(keys, keys))
    arms = [(key, [k for arm in d.arms.values() for k in arm]) for key, d in study.search.items() if d.kind == "arms"]
    for i, (one, own) in enumerate(arms):
        for other, others in arms[i + 1 :]:
            for first, later in _pairs(own, others, of_one=False):
                yield f"search: {later!r} of {other} replaces {first!r} of {one}"
    paths = [d.path or key for key, d in study.search.items() if d.kind != "arms"]
    for first, later in itertools.permutations(paths, 2):
        if replaces(later, first):
            yield f"search: {later!r} replaces {first!r}"
    fixed = [d.path or key for key, d in study.search.items() if d.kind != "arms" and not getattr(d, "times", False)]
    for where, keys in {"overrides": study.overrides, **named}.items():
        # the entry of a list that has no other, as of learning_rates, is all of it
        whole = [f"{key}.0" if isinstance(value, list) and len(value) == 1 else key for key, value in keys.items()]
        for first, later in _pairs(whole, fixed, of_one=False):
            yield f"search: {later!r} is set in each trial, which replaces {first!r} of {where}"


def _pairs(first: Iterable[str], later: Iterable[str], of_one: bool = True) -> Iterator[tuple[str, str]]:
    """Yield the keys of which the later one replaces the first. of_one: both are one list."""
    keys = list(later)
    for i, one in enumerate(first):
        yield from ((one, key) for key in (keys[i + 1 :] if of_one else keys) if replaces(key, one))


def check_settings(study: StudyConfig, given: Iterable[str], configs: Sequence[ExperimentConfig], source: str) -> None:
    """Raise ConfigError for settings of a suite that no trial measures; those of the base alone may stay.

    given: the keys that are set in all trials.
    """
    searched = [getattr(d, "path", None) or key for key, d in study.search.items() if d.kind != "arms"]
    of_arms = [key for d in study.search.values() if d.kind == "arms" for arm in d.arms.values() for key in arm]
    measured = {suite for config in configs for suite in config.evaluation.suites}
    for key in (*searched, *of_arms, *given):
        section, _, flat_key = key.partition(".")
        suite = FLAT.get(flat_key.partition(".")[0], ("",))[0] if section == "evaluation" else ""
        if suite and suite not in measured:
            raise ConfigError(
                f"{source}: {key!r} has no effect: add {suite} to the suites of the trials (evaluation.suites under "
                "overrides), or leave it out"
            )


def check_trials(study: StudyConfig, configs: Sequence[ExperimentConfig], source: str) -> None:
    """Raise ConfigError for what none of the trials can do. configs: each pick of each dimension is in one of them."""
    if any(config.grows for config in configs):
        raise ConfigError(f"{source}: base: grows is for a single run; a trial has the arms of its picks: leave it out")
    wrong = [fault for objective in study.objectives for fault in _against(objective)]
    if wrong := wrong + [fault for constraint in study.constraints for fault in _idle(constraint)]:
        raise ConfigError("\n".join([f"{source}:", *wrong]))
    check_end(study, configs, source)
    lists = [{ARM.sub("", fault): fault for fault in unused_fields(config)} for config in configs]
    if common := [fault for bare, fault in lists[0].items() if all(bare in faults for faults in lists)]:
        raise ConfigError("\n".join([f"{source}, in all trials:", *common]))
    law = study.search.get(study.report.law or "")
    if law and not SHARE.fullmatch(getattr(law, "path", None) or str(study.report.law)):
        raise ConfigError(f"{source}: report.law {study.report.law!r} sets no share of replayed text: name data.replay")


def check_dimensions(study: StudyConfig, configs: Sequence[ExperimentConfig], source: str) -> None:
    """Raise ConfigError for a dimension without effect of which one pick is the field's default, which has no fault.

    So too for an arm, or a section as a pick, that gives a field without effect: its trials would be those of another.
    configs: of `probes`. A pick with a fault is tried with each pick of the other dimensions, which it may need.
    """
    picks = list(probes(study.search))
    for key, dimension in study.search.items():
        here = [(p, c) for p, c in zip(picks, configs, strict=True) if {**p, key: picks[0][key]} == picks[0]]
        others = [one for one in picks if one[key] == picks[0][key]]

        def fault(name: str, pick: Any, others: Sequence[Any] = others, key: str = key) -> str:
            """Return why a field has no effect with this pick, whatever the other dimensions' picks are."""
            found = (_idle_field(name, study.run_config({**one, key: pick}, 0, study.seeds[0])) for one in others)
            faults = list(itertools.takewhile(bool, found))
            return faults[0] if len(faults) == len(others) else ""

        for one, config in here:
            given = _in_sections(dimension.overrides(key, one[key]))
            for name in (name for name in given if _idle_field(name, config)):
                if why := fault(name, one[key]):
                    raise ConfigError(f"{source}: search: {one[key]!r} of {key!r}: {why}")
        if dimension.kind == "arms":
            continue
        name = _in_section(dimension.path or key)
        faulty = [one[key] for one, config in here if _idle_field(name, config)]
        if faulty and len(here) - len(faulty) <= 1 and (why := fault(name, faulty[0])):
            raise ConfigError(f"{source}: search: {key!r} changes nothing in any trial: {why}")


def _in_sections(values: Mapping[str, Any], of: str = "") -> Iterator[str]:
    """Yield the fields and sections that dotted keys set, each with that around it: `rates.alpha`; not a single one."""
    for key, value in values.items():
        name = _in_section(f"{of}{key}")
        if of or len(values) > 1:
            yield name
        if isinstance(value, dict):
            yield from _in_sections(value, f"{name}.")


def _in_section(place: str) -> str:
    """Return the end of a dotted key, by which a fault names a field: `rates.alpha`; `replay` of `arms.0.replay`."""
    *_, section, name = f".{place}".split(".")
    return name if section.isdigit() or not section else f"{section}.{name}"


def check_numbers(study: StudyConfig, source: str) -> None:
    """Raise ConfigError for a range of real numbers over a field that takes whole ones: its ends alone may be whole."""
    first = next(probes(study.search))
    for key, dimension in study.search.items():
        if isinstance(dimension, Float):
            between = {**first, key: dimension.low + (dimension.step or 0.5)}
            try:
                study.run_config(between, 0, study.seeds[0])
            except ConfigError as error:
                if "fractional part" in str(error):  # other faults may be of this number alone
                    raise ConfigError(
                        f"{source}: search: {dimension.path or key!r} takes whole numbers, and most of a float range "
                        "are none: write kind: int"
                    ) from None


def _idle_field(name: str, config: ExperimentConfig) -> str:
    """Return why the field of this name (`_in_section`) has no effect; an empty text if it has."""
    before = r"(?<!\w)" if "." in name else r"(?<![\w.])"  # the latter: `arms.0.replay` is no `data.replay`
    place = re.escape(name).replace(r"\.", r"(?:\.|: )")  # training.arguments: NAME
    said = re.compile(rf"{before}{place} {NO_EFFECT}")
    return next((fault for fault in unused_fields(config) if said.search(fault)), "")


def _against(objective: Objective) -> Iterator[str]:
    """Describe the figures of an objective that would become worse; a sum may not mix both directions."""
    for name in parts(objective.figure):
        right = _right(name)
        if right not in (None, objective.direction):
            text = f"{objective.direction} {objective.figure!r}"
            yield f"  objectives: {text}, but {name} is to be {right}d: turn one round"


def _idle(constraint: Constraint) -> Iterator[str]:
    """Describe a bound that only worse trials keep to, and one that all or none do: a share in percent.

    One end of a range may be the figure's own.
    """
    yield from _worse_side(constraint)
    figure = _figure(constraint.figure)
    ends = {"min": (">=", constraint.min), "max": ("<=", constraint.max)}
    given = {key: (sign, limit) for key, (sign, limit) in ends.items() if limit is not None}
    idle = {key: why for key, end in given.items() if figure and (why := figure.beyond(*end))}
    for key, why in idle.items():
        limit = given[key][1]
        if len(idle) == len(given) or (figure and limit not in figure.bounds):
            yield f"  constraints: {key}={limit:g} on {constraint.figure!r}: {why}"


def _worse_side(constraint: Constraint) -> Iterator[str]:
    """Describe a bound that only worse trials keep to: `kl` from 0.1 on. With both bounds it is a range, and meant."""
    right = _right(constraint.figure)
    wrong, other, limit = ("max", "min", constraint.max) if right == "maximize" else ("min", "max", constraint.min)
    if right and limit is not None and None in (constraint.min, constraint.max):
        yield (
            f"  constraints: {wrong}={limit:g} on {constraint.figure!r} keeps the trials that are worse, since it is "
            f"to be {right}d: give {other}, or both for a range"
        )


def _right(name: str) -> str | None:
    """Return the direction in which a figure gets better, if it has one."""
    figure = _figure(name)
    return DIRECTIONS.get(figure.better) if figure and figure.better else None


def _figure(name: str) -> Figure | None:
    family = next((one for one in FIGURES.values() if one.family and name.startswith(one.prefix)), None)
    return FIGURES.get(name, family)


def check_inputs(study: StudyConfig, root: Path, say: Callable[[str], None] = print) -> None:
    """Read the inputs of a trial, and check the arms of all others on its base model. Raises ConfigError, ModelError.

    Takes as long as the start of one trial.
    """
    configs = [study.run_config(picks, 0, study.seeds[0]) for picks in probes(study.search)]
    read = {config.base_model: read_inputs(config, root, say) for config in configs[:1]}
    for config in configs:
        if config.base_model not in read:
            read[config.base_model] = read_inputs(config, root, say)
        check_run(config, read[config.base_model].model)
