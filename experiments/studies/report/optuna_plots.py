"""Optuna's own picture of a study, in the looks of the others: the progress over trials.

Drawn by optuna.visualization.matplotlib, which works on pyplot's figures and sets a style of its own: both are undone.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import optuna
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from optuna.trial import TrialState

from experiments.common.colours import PALETTE
from experiments.reporting.plots.caption import SHARES, Asked, caption, write_caption
from experiments.reporting.plots.style import STYLE
from experiments.studies.config import Objective
from experiments.studies.report.plots import objective_label

LEAST = 2  # complete trials that make a picture


def progress_figure(study: optuna.Study, objectives: Sequence[Objective], seeds: int = 1) -> Figure | None:
    """Draw the progress over trials. None for more than two objectives, and below two complete trials.

    seeds: of each trial, for the caption.

    One objective: each trial's value and the best so far. Two: the hypervolume of the front after each trial, measured
    from the worst value of each objective.
    """
    done = [trial for trial in _complete(study) if _feasible(trial)]
    if len(done) < LEAST or len(objectives) > 2:
        return None
    with _pyplot():
        if len(objectives) == 1:
            axes = optuna.visualization.matplotlib.plot_optimization_history(study, target_name=objectives[0].figure)
            axes.set_ylabel(objective_label(objectives[0]))
            unit = SHARES
        else:
            signs = [1 if o.direction == "minimize" else -1 for o in objectives]
            worst = [sign * max(sign * t.values[i] for t in done) for i, sign in enumerate(signs)]
            axes = optuna.visualization.matplotlib.plot_hypervolume_history(study, worst)
            at = ", ".join(f"{o.figure} {w:.3g}" for o, w in zip(objectives, worst, strict=True))
            axes.set_ylabel(f"hypervolume\nmeasured from {at}")
            unit = "unit: the product of the objectives'"
        figure = _own([axes], 7.5, 4.2)
    axes.set(xlabel="trial", title="")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend = axes.get_legend()
    for line in [*axes.get_lines(), *(legend.get_lines() if legend else ())]:
        line.set_color(PALETTE[0])
    if legend:
        legend.set_frame_on(False)
    write_caption(figure, caption(Asked({"complete trials": len(done)}, seeds), unit, ""))
    return figure


@contextlib.contextmanager
def _pyplot() -> Iterator[None]:
    """Keep the settings and open figures of pyplot: Optuna changes the first and adds to the second."""
    from matplotlib import pyplot

    before = set(pyplot.get_fignums())
    # from the start, or the scale next to a single panel is placed in a way that a later layout cannot handle
    style = {**STYLE, "figure.constrained_layout.use": True}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these pictures are an experimental part of Optuna
        try:
            yield
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)


def _own(panels: Sequence[Axes], width: float, height: float) -> Figure:
    """Free the panels' figure from pyplot, with this project's colours instead of Optuna's grey ground."""
    figure: Any = panels[0].figure
    FigureCanvasAgg(figure)
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained")
    figure.suptitle("")
    figure.patch.set_facecolor("white")
    for axes in figure.axes:
        axes.set_facecolor("white")
        axes.grid(visible=axes in panels, axis="y", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(LogFormatter())  # the default writes formulas
        for spine in axes.spines.values():
            spine.set_visible(axes in panels)
            spine.set_color("#9aa1ab")
        if axes in panels:
            sns.despine(ax=axes)
    return figure


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _feasible(trial: optuna.trial.FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())
