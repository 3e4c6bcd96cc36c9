"""The pictures of a study's report."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure

from experiments.common.errors import ConfigError
from experiments.records import Record, read_records
from experiments.reporting.details import alignment_pictures
from experiments.reporting.page import inline_svg
from experiments.reporting.plots.caption import Asked, asked_in, asked_of
from experiments.reporting.plots.multiples import gained_kept_figure
from experiments.reporting.text import gain_name
from experiments.studies.config import StudyConfig
from experiments.studies.report.optuna_plots import progress_figure
from experiments.studies.report.plots import importance_figure, pareto_figure, rank_figure, trajectory_figure
from experiments.studies.report.slices import slice_figures
from experiments.studies.selection import ReportRow, half_records
from experiments.studies.trial_results import record_files
from experiments.studies.trials import Trial

if TYPE_CHECKING:
    import pandas as pd

    from experiments.studies.queue import Store

MOST = 20  # arms in one picture
FEW = 8  # of trials that are called by what they picked; more are called by their numbers
FEW_TRIALS = (
    "Fewer than 32 trials give a hint only: of 8, a dimension without effect had more than .3 in 40 of 100 simulated "
    "searches, of 16 in 25."
)


class Picture(NamedTuple):
    """A figure with the name of its file, its title and one sentence on what it shows."""

    name: str
    title: str
    text: str
    figure: Figure

    @property
    def image(self) -> str:
        return inline_svg(self.figure)


def pictures(
    store: Store, arms: Sequence[ReportRow], trials: Sequence[Trial], root: Path, paper: pd.DataFrame | None = None
) -> list[Picture]:
    """Draw what there is, in the order of the report. paper: our figures and the paper's (`paper.compared`)."""
    asked = study_asked(store.config, trials, root)
    return [
        *_of_arms(store, arms, _reported(arms, root, asked)),
        *_of_trials(store, trials, asked, paper),
        *_of_layers(arms, root),
    ]


def study_asked(study: StudyConfig, trials: Sequence[Trial], root: Path) -> Asked:
    """Return how much a trial's figures rest on, from the first one that is complete: its base's records, its config.

    root: where the records are, if they are on this machine.
    """
    for trial in trials:
        with contextlib.suppress(ConfigError, KeyError):  # picks of a study of earlier versions
            if trial.state == "complete":
                config = study.run_config(trial.picks, trial.number, study.seeds[0])
                base = record_files(trial.runs[0], root)[0] if trial.runs else root
                return asked_in(config.to_dict(), read_records(base) if base.is_file() else (), len(study.seeds))
    return Asked(seeds=len(study.seeds))


def _reported(arms: Sequence[ReportRow], root: Path, asked: Asked) -> Asked:
    """Return how much the figures of arms rest on: on the half of the items that did not choose, if one did."""
    arm = next((arm for arm in arms if arm.halves), None)
    if arm is None:
        return asked
    _, after = half_records(arm.runs[0], root, False)
    found = {**asked_of(after).counts, "replies": len({r.item for r in after if r.task == "replies"})}
    return replace(asked, counts={part: found.get(part, 0) for part in asked.counts})


def law_pictures(laws: Mapping[str, Figure]) -> list[Picture]:
    """Name the pictures of the mixture laws. laws: by arm."""
    text = "Loss against the share of new text; the lines are fits."
    return [Picture(f"law-{i}", f"The mixture law of {arm}", text, law) for i, (arm, law) in enumerate(laws.items())]


def _of_arms(store: Store, arms: Sequence[ReportRow], asked: Asked) -> list[Picture]:
    if not arms:
        return []
    study, some = store.config, list(arms[:MOST])
    trained = [arm for arm in arms if not arm.result.operation]
    short = len(some) > FEW and all(arm.name.startswith("#") for arm in trained)
    numbers = " The numbers are those of the table." if short else ""
    if short:
        some, trained = ([_by_number(arm) for arm in found] for found in (some, trained))
    figure = gained_kept_figure([arm.result for arm in some], "", asked)
    halves = any(arm.halves for arm in arms)
    items = f"The items that did not choose {study.report.select}." if halves else "All evaluation items."
    over_steps = trajectory_figure(trained[:MOST], gain_name([arm.result for arm in trained]), asked)
    return [
        Picture(
            "forgetting", "What is gained, what is kept", "Up and right is better." + numbers + _first(arms), figure
        ),
        Picture("trajectories", "Over the steps", f"Grey: the base model. {items}{numbers}{_first(arms)}", over_steps),
    ]


def _of_trials(store: Store, trials: Sequence[Trial], asked: Asked, paper: pd.DataFrame | None) -> list[Picture]:
    study = store.config
    found: list[Picture] = []
    if len(study.objectives) > 1 and any(t.values for t in trials):
        text = "Each point is a trial; the numbers are those of trials on the front."
        drawn = pareto_figure(trials, store.front(), study.objectives, asked)
        found.append(Picture("pareto", "Pareto front", text, drawn))
    if paper is not None and len(paper) > 1:
        text = "Each line joins an arm's rank in the paper with its rank here; short lines agree."
        found.append(Picture("ranks", "Ranks here and in the paper", text, rank_figure(paper, asked.seeds)))
    done = sum(trial.state == "complete" for trial in trials)
    if importances := store.importances():
        text = "How much of an objective's variance over the trials each dimension explains."
        text += f" {FEW_TRIALS}" if done < 32 else ""
        found.append(Picture("importances", "What matters", text, importance_figure(importances, done, asked.seeds)))
    text = "Each point is a trial, in the colour of its method and learning rate."
    for i, (objective, figure) in enumerate(slice_figures(trials, study.objectives, asked)):
        found.append(Picture(f"slice-{i}", f"Trials by dimension: {objective.figure}", text, figure))
    progress = None if study.sampler.name == "grid" else progress_figure(store.study, study.objectives, asked.seeds)
    if progress:  # a grid goes through its cells in their order: nothing progresses
        found.append(Picture("progress", "What the search found", "The best of the trials so far.", progress))
    return found


def _of_layers(arms: Sequence[ReportRow], root: Path) -> list[Picture]:
    """Draw how far the hidden states of each arm's first seed moved, if the study measures suite `alignment`."""
    last: dict[str, list[Record]] = {}
    for arm in [arm for arm in arms if arm.records][:MOST]:
        last[arm.name] = read_records(record_files(arm.runs[0], root)[1])
    text = "The darker, the further apart, after the last step; seed {}.".format(
        arms[0].runs[0]["seed"] if arms else ""
    )
    return [
        Picture(f"alignment-{i}" if i else "alignment", title, text + _first(arms), figure)
        for i, (title, figure) in enumerate(alignment_pictures(last))
    ]


def _by_number(arm: ReportRow) -> ReportRow:
    name = arm.name.split(" ")[0]
    return replace(arm, name=name, result=replace(arm.result, arm=name))


def _first(arms: Sequence[ReportRow]) -> str:
    return f" The first {MOST} of {len(arms)} arms." if len(arms) > MOST else ""
