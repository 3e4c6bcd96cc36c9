"""Find the fields of a config that have no effect: who gives one expects something that will not happen.

A field counts as given if it differs from its default, because a run's own `config.yaml` holds all defaults too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from ctrl.config import OF_DIVERGENCE, ControlConfig, all_stacked, changed_fields, compares_hidden, without_effect
from ctrl.interpolation import INTERPOLATIONS
from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig
from experiments.data.columns import Columns
from experiments.data.files import TEXTS, LocalFile
from experiments.data.hub import HuggingFace
from experiments.data.unread import said_escapes
from experiments.methods.averaging import Mer
from experiments.methods.config import ArmConfig
from experiments.methods.parts import part_name
from experiments.methods.tuning import Control, Partial
from experiments.training.config import TrainingConfig
from experiments.training.launcher import world_size
from experiments.training.optimizer_fields import unread as unread_arguments

OF_SCHEDULES = {  # field of the section `training` -> schedules that read it
    "min_lr_ratio": ("cosine", "infinite"),
    "constant_lr_ratio": ("infinite",),
    "cooldown_share": ("infinite",),
    "anneal_share": ("infinite",),
}
JUDGING = {"new", "kept", "lm_eval"}  # suites with a gain or a retention
# field that names columns -> fields that are not read next to it
INSTEAD_OF = {
    "messages": ("text", "question", "answer", "solution"),
    "text": ("question", "answer", "solution"),
}


def check_fields(config: ExperimentConfig) -> None:
    """Raise ConfigError that lists the fields without effect, each with the field that it needs."""
    if faults := unused_fields(config):
        raise ConfigError("\n".join(faults))


def notes(config: ExperimentConfig) -> Iterator[str]:
    """Say what is given and has no effect here, but may be meant for more steps or other arms; one line each."""
    steps, warm = config.training.steps, config.training.warmup_steps
    if warm == steps:  # the first step has a rate of 0; earlier versions wrote this into a run's folder
        yield (
            f"training.warmup_steps={warm} are all the steps: the last has {warm - 1}/{warm} of the learning rate, "
            "which is never reached. Lower warmup_steps"
        )
    yield from _beyond_steps(config)
    yield from _cut(config.training)
    if config.training.schedule == "infinite":
        yield from _phases(config.training)
    if config.training.arguments.get("neftune_noise_alpha"):
        yield (
            "training.arguments: the noise of neftune_noise_alpha is drawn for each micro-batch and process, and is "
            "larger where its rows are shorter: results depend on training.micro_batch and the number of processes"
        )
    if config.data.choose is not None and config.data.choose.by == "random" and _given(config.data.choose, ("of",)):
        yield (
            "data.choose: of has no effect with by: random if enough examples fit a row: they are in random order, and "
            "the first ones are kept"
        )
    if config.data.merge_system and not _has_systems(config):
        yield "data.merge_system has no effect, since no source has system turns: give data.system, or leave it out"
    yield from said_escapes({"data.system": config.data.system})
    for arm in config.arms:
        yield from arm.notes
        yield from _without_weight(arm)
        yield from _without_divergence(arm)
        average = arm.build().average
        if isinstance(average, Mer) and average.every > steps:
            yield f"arm {arm.name}: mer averages nothing, since every={average.every} is beyond the {steps} steps"
    if idle := sorted(config.evaluation.unused_settings()):  # the command refuses them, if not set over a file
        yield f"evaluation: the settings of {', '.join(idle)} have no effect, since suites does not name them"
    held = [source.label for source in config.data.new if isinstance(source, Columns) and not source.test]
    if held and "new" not in config.evaluation.suites:
        yield (
            f"{', '.join(held)}: {config.evaluation.new_items:,} examples are held out (evaluation.new_items), though "
            "suite new is not measured: add it, or lower new_items to train on more of them"
        )


def _beyond_steps(config: ExperimentConfig) -> Iterator[str]:
    """Say what is meant for more steps than there are. Not refused: a run is tried with two steps first."""
    training, default = config.training, TrainingConfig.model_fields["warmup_steps"].default
    steps, every, save = training.steps, config.evaluation.every, training.save_every
    if 1 < steps < default and training.warmup_steps == steps - 1:  # cut to it, even if it was written out
        yield (
            f"training.warmup_steps: the learning rate rises in {steps - 1} of the {steps} steps, all but the last: so "
            f"the default, {default}, is cut in a run that is shorter"
        )
    if every is not None and every > steps and _given(config.evaluation, ("every",)):
        when = "the end of each stage" if len(config.evaluation_steps) > 1 else "the end"
        yield f"evaluation.every={every} is beyond the {steps} steps: {when} alone is measured"
    if save is not None and save >= steps:
        yield f"training.save_every={save} leaves no checkpoint in {steps} steps, unless a signal stops the run"


def _cut(training: TrainingConfig) -> Iterator[str]:
    """Say which micro-batch is not the one that was asked for."""
    asked, own = training.micro_batch or 1, max(1, training.batch_size // world_size())
    if asked < own and own % asked:
        whose = "a batch" if own == training.batch_size else "a device"
        yield (
            f"training.micro_batch={asked} does not divide the {own} rows of {whose}: they are cut into "
            f"{own // training.cut(own)[0]} micro-batches of {training.cut(own)[0]}"
        )


def _has_systems(config: ExperimentConfig) -> bool:
    """Whether chats may have system turns: those of tables may, and lm_eval writes descriptions of tasks as one."""
    tables = [one for one in (*config.data.new, *config.data.old) if isinstance(one, Columns) and not one.text]
    return bool(tables) or config.data.system is not None or "lm_eval" in config.evaluation.suites


def unused_fields(config: ExperimentConfig) -> list[str]:
    """Describe the fields without effect, one line each, except settings of suites (a study has its base's)."""
    kept = [config.evaluation.settings("kept").idle] if "kept" in config.evaluation.suites else []
    idle = (f"evaluation.suites.{one}" for one in filter(None, kept))
    return [*_data(config), *_training(config), *idle, *(fault for arm in config.arms for fault in _arm(arm))]


def _data(config: ExperimentConfig) -> Iterator[str]:
    data = config.data
    shares = [data.replay if arm.replay is None else arm.replay for arm in config.arms]
    replays = any(shares) or (config.grows and data.replay)  # arms that come later have the share of the experiment
    if data.replay and not config.grows and all(arm.replay is not None for arm in config.arms):
        yield "data.replay has no effect, since each arm sets its own replay: leave it out, or take it from an arm"
    if data.old and not replays and not any(arm.build().reads_old for arm in config.arms):
        yield "data.old is read by no arm: give data.replay, the share of its tokens, or leave it out"
    if data.choose is not None and not replays:
        yield "data.choose has no effect, since no arm replays: give data.replay, or leave it out"
    for source in data.old:
        grader = getattr(source, "grader", None)  # choice turns a letter into the text of its option
        given = {"test": getattr(source, "test", None), "grader": None if grader and grader.by_choice else grader}
        for name in (name for name, value in given.items() if value is not None):
            yield f"data.old: source {source.label}: {name} has no effect: the sources of data.new are measured"
    for source in data.new if "new" not in config.evaluation.suites else ():
        grader = getattr(source, "grader", None)
        if grader and not grader.by_choice:
            yield f"data.new: source {source.label}: grader has no effect: add suite new, or leave it out"
    for source in (*data.new, *data.old):
        read = next((name for name in INSTEAD_OF if isinstance(source, Columns) and getattr(source, name)), None)
        if read and (unread := _given(source, INSTEAD_OF[read])):
            yield f"data: source {source.label}: {', '.join(unread)} is not read next to {read}: leave one of both out"
        if isinstance(source, LocalFile) and _given(source, ("separator",)) and source.tables_alone:
            yield f"data: source {source.label}: separator splits text files ({', '.join(TEXTS)}), not tables"
        if isinstance(source, HuggingFace) and source.revision is not None and Path(source.name).is_dir():
            yield (
                f"data: source {source.label}: revision has no effect: it is one of the Hub, and {source.name} is a "
                "folder: leave it out"
            )


def _training(config: ExperimentConfig) -> Iterator[str]:
    training = config.training
    for name in _given(training, OF_SCHEDULES):
        if training.schedule not in OF_SCHEDULES[name]:
            needed = " or ".join(OF_SCHEDULES[name])
            yield f"training.{name} has no effect with schedule {training.schedule!r}: it needs schedule {needed}"
    if training.keep == "none" and _given(training, ("keep_dtype",)):
        yield "training.keep_dtype has no effect with keep none: no trained weights stay"
    if training.keep == "best" and not JUDGING & set(config.evaluation.suites):
        yield f"training.keep best has no gain or retention to choose by: add a suite of {', '.join(sorted(JUDGING))}"
    yield from (f"training.arguments: {fault}" for fault in unread_arguments(training.arguments))
    yield from _rates(config)


def _rates(config: ExperimentConfig) -> Iterator[str]:
    given = config.training.rates.given
    tunings = [arm.build().tuning for arm in config.arms]
    copies = [tuning.config for tuning in tunings if isinstance(tuning, Control)]
    if "alpha" in given and not any(one.alpha == "learned" for one in copies):
        yield "training.rates.alpha has no effect: no arm learns alpha, set control.alpha to learned"
    if "gates" in given and not any(map(_has_gates, copies)):
        why = "no copies have gates, so choose another control.interpolation or norm_mix" if copies else ""
        yield f"training.rates.gates has no effect: {why or 'no arm trains copies'}"


def _has_gates(config: ControlConfig) -> bool:
    """Whether copies learn anything besides themselves and their alpha (`training.groups.kinds`)."""
    if config.norm_mix == "learned" or config.structure == "stack":
        return config.norm_mix == "learned"
    mixes = INTERPOLATIONS[config.interpolation](2)
    still = {"theta", *(() if compares_hidden(config) else mixes.trained_by_divergence)}
    return bool({name for name, _ in mixes.named_parameters()} - still)


def _arm(arm: ArmConfig) -> Iterator[str]:
    tuning = arm.build().tuning
    # `control` of an arm that reads none of it is said (`ArmConfig.notes`), not refused: a study gives it to all arms
    faults: Iterable[str] = (
        (f"control.{fault}" for fault in without_effect(tuning.config)) if isinstance(tuning, Control) else ()
    )
    if isinstance(tuning, Control) and tuning.config.copies_dtype != "fp32":
        faults = (*faults, "control.copies_dtype has no effect in a run, which trains in fp32: leave it out")
    if isinstance(tuning, Partial) and arm.method is not None:
        given = [name for name in changed_fields(arm.control) if name != "layers"]
        faults = (f"control.{name} has no effect: it needs method control" for name in given)
    yield from (f"arm {arm.name!r}: {fault}" for fault in faults)


def _without_weight(arm: ArmConfig) -> Iterator[str]:
    """Say which terms of the loss count 0 times and have more fields. A study may search weights from 0 on."""
    for term in arm.build().losses:
        given = [name for name in _given(term, type(term).model_fields) if name != "weight"]
        if getattr(term, "weight", None) == 0 and given:
            yield f"arm {arm.name}: {part_name(term)} has weight 0, so {', '.join(given)} has no effect"


def _without_divergence(arm: ArmConfig) -> Iterator[str]:
    """Say which fields of copies nothing reads, since no divergence counts. A study may search both at once."""
    tuning = arm.build().tuning
    if not isinstance(tuning, Control) or all_stacked(tuning.config):
        return
    config = tuning.config
    given = {"divergence", *OF_DIVERGENCE} & {*changed_fields(config)} - {"divergence_weight"}
    if config.divergence != "none" and config.divergence_weight == 0 and given:
        yield f"arm {arm.name}: control.divergence_weight is 0, so {', '.join(sorted(given))} has no effect"
    still = INTERPOLATIONS[config.interpolation].trained_by_divergence
    if still and not compares_hidden(config):
        yield (
            f"arm {arm.name}: no divergence compares hidden states, so {', '.join(still)} of control.interpolation "
            f"{config.interpolation} stays as at the start"
        )


def _phases(training: TrainingConfig) -> Iterator[str]:
    """Say of phases of schedule infinite that have no step what is not reached without them."""
    if _given(training, ("min_lr_ratio",)) and not round(training.anneal_share * training.steps):
        yield "training.min_lr_ratio has no effect: anneal_share has no step of schedule infinite"
    if training.constant_lr_ratio < 1 and not round(training.cooldown_share * training.steps):
        yield (
            "training.cooldown_share has no step: schedule infinite goes from the warm-up straight to "
            f"constant_lr_ratio={training.constant_lr_ratio:g} of the learning rate, which is never reached"
        )


def _given(section: BaseModel, names: Collection[str]) -> list[str]:
    """Return those of the fields that differ from their defaults."""
    fields = type(section).model_fields
    return [name for name in names if getattr(section, name) != fields[name].default]
