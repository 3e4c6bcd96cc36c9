"""Log what a trial gave to its run in MLflow: means over its seeds, and their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.records import Estimate, read_records
from experiments.reporting.text import interval_tags
from experiments.scorecard import mean_card, over_seeds
from experiments.scorecard.figures import HEADLINE
from experiments.studies.config import StudyConfig
from experiments.studies.trial_results import record_files, result_of
from experiments.tracking.run import Run
from experiments.tracking.view import kind_params

if TYPE_CHECKING:
    from experiments.studies.trial_results import TrialOutcome

DRAWS = 1000  # of the bootstrap: the study's report draws more


def log_figures(study: StudyConfig, outcome: TrialOutcome, run: Run, root: Path) -> None:
    """Log the means over the seeds, by which MLflow sorts trials; of one seed only what its arm has not logged.

    Method and rate are those of its arms, so that a trial has the columns that they have. The intervals of several
    seeds are tags, as those of arms are. Fills outcome.figures.
    """
    results = [result_of(one) for one in outcome.runs]
    means = {name: e.value for name, e in mean_card([result.scorecard for result in results]).items()}
    outcome.figures = {name: means[name] for name in HEADLINE if name in means}
    named = {o.figure: value for o, value in zip(study.objectives, outcome.values, strict=True)}
    feasible = {"feasible": float(max(outcome.constraints.values()) <= 0)} if outcome.constraints else {}
    arm = {*HEADLINE, *(f"cost/{name}" for name in results[0].cost)} if len(results) == 1 else set()
    run.log_params(kind_params(results[0].method, results[0].learning_rate))
    logged = {**outcome.figures, **means, **named, **feasible}  # the headline first: Compare opens on the gain
    run.log_new({name: value for name, value in logged.items() if name not in arm}, max(r.steps for r in results))
    run.set_tags(interval_tags(_over_seeds(outcome, root)))


def _over_seeds(outcome: TrialOutcome, root: Path) -> Mapping[str, Estimate]:
    """Return the figures with intervals over seeds and questions; empty for one seed, whose arm has its own."""
    files = [record_files(one, root) for one in outcome.runs]
    if len(files) < 2 or not all(path.is_file() for pair in files for path in pair):
        return {}
    return over_seeds([(read_records(base), read_records(after)) for base, after in files], DRAWS)
