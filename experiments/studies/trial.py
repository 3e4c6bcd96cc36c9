"""Run one trial: an experiment of one arm per seed, tracked below the study; its figures are means over the seeds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import RunError, TrackingError
from experiments.common.files import read_note, write_json
from experiments.common.paths import absolute
from experiments.common.printable import escaped
from experiments.common.section import nearest
from experiments.common.yaml_values import dump_yaml
from experiments.records import ArmResult, Estimate
from experiments.studies.config import StudyConfig, parts
from experiments.studies.locks import STORAGE_FAULTS
from experiments.studies.space import Scalar, picks_words
from experiments.studies.trial_results import TrialOutcome, result_of
from experiments.studies.trials import Trial
from experiments.tracking.run import ParentRun
from experiments.tracking.tracker import Tracker
from experiments.tracking.uri import without_password

if TYPE_CHECKING:
    from experiments.runs.arm import Observer
    from experiments.runs.outcome import Outcome

ShouldPrune = Callable[[int, float], bool]  # gets a step and the first objective there; True ends the trial


class TrialFailed(RuntimeError):
    """A trial has no values; the message is the reason. runs: its runs so far, see `run_record`. The study goes on."""

    def __init__(self, reason: str | None, runs: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(without_password(reason) if reason else reason)
        self.runs = list(runs)


class TrialPruned(Exception):
    """The pruner stopped a trial. outcome: what was measured until then."""

    def __init__(self, outcome: TrialOutcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


def run_trial(
    study: StudyConfig,
    number: int,
    picks: dict[str, Scalar],
    root: Path,
    parent: str | None,
    should_prune: ShouldPrune | None = None,
    say: Callable[[str], None] = print,
    agree: Callable[[Mapping[str, str]], None] | None = None,
) -> TrialOutcome:
    """Run or continue a trial. number: of its first attempt; a later attempt continues in the same folders.

    parent: id of the study's MLflow run. should_prune: the pruner; called with the first objective after each
    evaluation, at steps counted over all seeds. agree: see `run_experiment`. Raises TrialFailed, TrialPruned, and what
    run_experiment raises.
    """
    from experiments.runs.run import errors_explained, run_experiment  # loads torch; `status` needs none
    from experiments.studies.logged import log_figures

    note, words = trial_folder(study, root, number) / "mlflow.json", picks_words(study.search, picks)
    saved = read_note(note)
    if saved.get("picks") != picks:  # it is of an earlier study of this name, whose storage is gone
        saved = {}
    outcome, pruned, failed, single = TrialOutcome(root=root), "", "", len(study.seeds) == 1
    tracker = Tracker(root, study.name)
    with tracker.run(
        f"#{number} {words}",
        kind="trial",
        parent=parent,
        params=picks,
        run_id=saved.get("run_id"),
        note=lambda run_id: write_json(note, {"run_id": run_id, "picks": picks}),
    ) as run:
        outcome.url = tracker.run_url(run.id)
        run.set_tags({"optuna_study": study.name, "optuna_trial": str(number)})
        run.log_note(escaped("\n".join(f"- {key}: {pick}" for key, pick in picks.items())))
        for i, seed in enumerate(study.seeds):
            try:
                with errors_explained(root):
                    config = study.run_config(picks, number, seed)  # picks may be valid one by one, but not together
                    if i == 0:
                        run.log_text(dump_yaml(config.to_dict()), "config.yaml")
                    observe = _observer(study, should_prune, i * config.training.steps)
                    above = ParentRun(run.journal.run, f"#{number} seed {seed} {words}", joins=single)
                    done = run_experiment(
                        config, root, say=say, parent=above, observe=observe, experiment=study.name, agree=agree
                    )
            except (RunError, TrackingError, BrokenPipeError, *STORAGE_FAULTS):  # of the machine, not of the trial
                raise
            except Exception as error:
                raise TrialFailed(f"{type(error).__name__}: {error}", outcome.runs) from error
            result = done.results[0]
            outcome.runs.append(run_record(seed, done, root))
            outcome.pictures[f"forgetting-seed-{seed}.png"] = done.folder / "forgetting.png"
            if result.status == "failed":
                run.fail(result.reason or "no reason was recorded")
                failed = str(result.reason) if single else f"seed {seed}: {result.reason}"
                break
            if result.status == "pruned":
                pruned = result.reason or "stopped"
                run.set_tags({"pruned": pruned})
                break
        if not pruned and not failed:
            try:
                conclude(study, outcome)
            except TrialFailed as failure:
                raise TrialFailed(str(failure), outcome.runs) from failure
            log_figures(study, outcome, run, root)
    if failed:
        raise TrialFailed(failed, outcome.runs)
    if pruned:
        raise TrialPruned(outcome, pruned)
    return outcome


def repeated(trial: Trial) -> Callable[..., TrialOutcome]:
    """Return a function to call in place of `run_trial`: it returns the outcome of a trial with the same picks."""
    return lambda *_: TrialOutcome(trial.values or [], trial.constraints, trial.runs)


def trial_folder(study: StudyConfig, root: Path, number: int) -> Path:
    return root / "studies" / study.name / "trials" / f"{number:03d}"


def steps_done(study: StudyConfig, root: Path, number: int, picks: dict[str, Scalar]) -> int:
    """Return how far a trial has come in the folders of its runs: the steps of its checkpoints, over all seeds."""
    from experiments.runs.run import run_folder  # loads torch; `status` needs none

    with contextlib.suppress(Exception):  # picks that do not go together have no runs
        folders = [run_folder(study.run_config(picks, number, seed), root) for seed in study.seeds]
        return sum(_steps_of(folder, study.run_config(picks, number, 0).training.steps) for folder in folders)
    return 0


def _steps_of(run: Path, steps: int) -> int:
    """Return the steps of a run's last checkpoint; a measured base and a result count as one more."""
    from experiments.training.checkpoints import COMPLETE  # loads torch; `status` needs none

    results, whole = run.glob("arms/*/result.json"), run.glob(f"arms/*/checkpoints/checkpoint-*/{COMPLETE}")
    reached = [int(file.parent.name.rsplit("-", 1)[1]) for file in whole] + [steps + 1 for _ in results]
    return max(reached, default=0) + (run / "base" / "items.jsonl").is_file()


def run_record(seed: int, outcome: Outcome, root: Path) -> dict[str, Any]:
    """Return what the study's storage keeps of a run, as plain JSON: a report needs no other file."""
    for folder, top in ((absolute(outcome.folder), absolute(root)), (outcome.folder.resolve(), root.resolve())):
        if folder.is_relative_to(top):  # first without following links: a run may be one to another disk
            return {"seed": seed, "folder": str(folder.relative_to(top)), "result": outcome.results[0].to_dict()}
    return {"seed": seed, "folder": str(folder), "result": outcome.results[0].to_dict()}


def figure(result: ArmResult, name: str) -> float:
    """Return a figure of the scorecard, `cost/NAME`, or a sum of them (`new_accuracy + kept_accuracy`).

    Raises TrialFailed if it was not measured, with the nearest name, if its value is not finite, and if it is on
    forgetting, and the base has nothing to forget: it would be perfect.
    """
    from experiments.comparison.gate import NOTHING, is_empty  # loads NumPy; `status` needs none

    figures = {**result.scorecard, **{f"cost/{key}": Estimate(value) for key, value in result.cost.items()}}
    value = sum_of(figures, name)
    if empty := [part for part in parts(name) if is_empty(part, result.scorecard)]:
        raise TrialFailed(f"{empty[0]}: {NOTHING}")
    if not math.isfinite(value):
        raise TrialFailed(f"{name} is {value}: the base's items may be too few, or the model is broken")
    return value


def sum_of(figures: Mapping[str, Estimate], name: str) -> float:
    """Return the sum of the figures in `name`. Raises TrialFailed for one that was not measured."""
    names = parts(name)
    for part in names:
        if part not in figures:
            raise TrialFailed(f"no figure {part!r} was measured: {nearest(part, figures)}")
    return math.fsum(figures[part].value for part in names)


def conclude(study: StudyConfig, outcome: TrialOutcome) -> None:
    """Fill values and constraints from the results of the runs. Raises TrialFailed for a figure that is missing."""
    results = [result_of(run) for run in outcome.runs]

    def mean(name: str) -> float:
        return math.fsum(figure(result, name) for result in results) / len(results)

    outcome.values = [mean(objective.figure) for objective in study.objectives]
    for bound in study.constraints:
        if bound.min is not None:
            outcome.constraints[f"{bound.figure} >= {bound.min:g}"] = bound.min - mean(bound.figure)
        if bound.max is not None:
            outcome.constraints[f"{bound.figure} <= {bound.max:g}"] = mean(bound.figure) - bound.max


def _observer(study: StudyConfig, should_prune: ShouldPrune | None, before: int) -> Observer:
    """Return what looks at each evaluation. before: steps of the seeds that have run."""
    from experiments.runs.arm import StopArm

    name = study.objectives[0].figure

    def observe(label: str, step: int, figures: dict[str, Estimate]) -> None:
        if study.kl_budget is not None and not (kl := sum_of(figures, "kl")) <= study.kl_budget:  # NaN too
            raise StopArm(f"stopped at step {step}: kl was {kl:.4g}, above the budget of {study.kl_budget:g}")
        if should_prune is None:
            return
        value = sum_of(figures, name)
        if math.isfinite(value) and should_prune(before + step, value):
            raise StopArm(f"pruned at step {step}: {name} was {value:.4g}")

    return observe
