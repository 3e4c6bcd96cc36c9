"""The report of a stream of tasks: the figures of each arm in a table, and the matrix R as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from matplotlib.figure import Figure

from experiments.records import ArmResult, Estimate, Record
from experiments.reporting.plots.caption import asked_in
from experiments.reporting.plots.stream import stream_figure
from experiments.reporting.table import Table
from experiments.reporting.text import figure_text, label
from experiments.scorecard import stream, stream_matrix
from experiments.scorecard.figures import FIGURES

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig

Checkpoints: TypeAlias = Mapping[int, Sequence[Record]]  # records by step
SHOWN = [figure for figure in FIGURES.values() if figure.suite == "stream"]
DRAWN = 100  # resamples, if only the observed scores are wanted
NOTE = (
    "R[t, j]: score on task j after stage t ({score}). "
    + " ".join(f"{figure.title}: {figure.meaning}." for figure in SHOWN)
    + " Brackets: 95 % intervals over questions."
)
SCORES = {False: "accuracy", True: "-NLL of held-out texts, nats per token"}


def task_names(config: ExperimentConfig) -> list[str]:
    """List the tasks of a stream in the order of learning; none if the run is no stream or does not measure them."""
    is_stream = config.data.sequential and "new" in config.evaluation.suites
    return [source.label for source in config.data.new] if is_stream else []


def stage_steps(config: ExperimentConfig) -> dict[str, int]:
    """Find the last step of each task's stage, in the order of learning; none if the run is no stream."""
    return dict(zip(task_names(config), _ends(config), strict=False))


def stream_card(config: ExperimentConfig, base: Sequence[Record], checkpoints: Checkpoints) -> dict[str, Estimate]:
    """Compute `scorecard.stream` of an arm; no figures if the run is no stream or the arm has not reached its end."""
    stages = _stages(config, base, checkpoints)
    return stream(stages, task_names(config), config.evaluation.bootstrap, config.seed) if stages else {}


def stream_table(config: ExperimentConfig, results: Sequence[ArmResult]) -> Table | None:
    """Show the figures of the arms that have them; None if the run is no stream."""
    tasks, arms = task_names(config), [r for r in results if {figure.name for figure in SHOWN} <= r.scorecard.keys()]
    if not tasks or not arms:
        return None
    rows = tuple((label(r), *(figure_text(r.scorecard, figure.name) for figure in SHOWN)) for r in arms)
    steps = ", ".join(f"{task} to step {end}" for task, end in stage_steps(config).items())
    texts = any(r.scorecard["stream_op"].value < 0 for r in arms)
    note = f"Learned one after the other: {steps}. " + NOTE.format(score=SCORES[texts])
    return Table("Stream of tasks", ("arm", *(figure.title for figure in SHOWN)), rows, note)


def stream_pictures(
    config: ExperimentConfig, base: Sequence[Record], arms: Mapping[str, Checkpoints]
) -> list[tuple[str, Figure]]:
    """Draw the matrix R of each arm that reached the end of the stream. arms: records by step, by arm."""
    tasks = task_names(config)
    found = {name: _stages(config, base, checkpoints) for name, checkpoints in arms.items()}
    matrices = {n: stream_matrix(stages, tasks, DRAWN)[..., 0] for n, stages in found.items() if stages}
    if not matrices:
        return []
    asked = asked_in(config.to_dict(), base)
    return [("Tasks after each stage", stream_figure(matrices, tasks, "Score on each task after each stage", asked))]


def _ends(config: ExperimentConfig) -> tuple[int, ...]:
    return config.data.stage_ends(config.training.steps)


def _stages(config: ExperimentConfig, base: Sequence[Record], checkpoints: Checkpoints) -> list[list[Record]]:
    """Select the records of suite `new`: the base's, then those at the end of each stage.

    None unless all stages were measured, on one scale.
    """
    ends = _ends(config)
    if not task_names(config) or not set(ends) <= checkpoints.keys():
        return []
    stages = [[r for r in records if r.suite == "new"] for records in (base, *(checkpoints[end] for end in ends))]
    return stages if len({r.form == "nll" for r in stages[0]}) == 1 else []
