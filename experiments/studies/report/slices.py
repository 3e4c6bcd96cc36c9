"""The trials of a study by dimension: an objective against what a dimension picked, numbers in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from experiments.reporting.plots.caption import SHARES, Asked, caption, write_caption
from experiments.reporting.plots.decades import far_apart, log_axis
from experiments.reporting.plots.style import STYLE
from experiments.studies.config import Objective
from experiments.studies.report.plots import objective_label, trial_colour
from experiments.studies.space import Scalar, short_names
from experiments.studies.trials import Trial

LEAST = 2  # complete trials that make a picture
LONGEST = 12  # letters of the names below an upright axis; longer ones are turned
FEW = 8  # numbers that are written at the axis, each where it is; more get round numbers


def slice_figures(
    trials: Sequence[Trial], objectives: Sequence[Objective], asked: Asked | None = None
) -> list[tuple[Objective, Figure]]:
    """Draw for each objective a panel per dimension: a point per trial. Empty below two complete trials.

    Hue: method; shade: learning rate; crosses break a constraint. Numbers are in their order, also those of a list of
    choices; over a decade or more their axis is logarithmic. asked: for the caption.
    """
    done = [trial for trial in trials if trial.values]
    names = list(dict.fromkeys(name for trial in done for name in trial.picks))
    if len(done) < LEAST or not names:
        return []
    return [(objective, _figure(done, names, objective, i, asked)) for i, objective in enumerate(objectives)]


def _figure(done: Sequence[Trial], names: Sequence[str], objective: Objective, i: int, asked: Asked | None) -> Figure:
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 2.6 * len(names), 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for (name, short), axes in zip(short_names(names).items(), panels, strict=True):
            axes.set_xlabel(short)
            _panel(axes, [trial for trial in done if name in trial.picks], name, i)
        panels[0].set_ylabel(objective_label(objective))
        text = f"{len(done)} trials; {caption(asked or Asked(), SHARES, '')}\nhue: method, shade: rate"
        write_caption(figure, text + ("; crosses break a constraint" if any(not t.feasible for t in done) else ""))
    return figure


def _panel(axes: Axes, trials: Sequence[Trial], name: str, i: int) -> None:
    picks = [trial.picks[name] for trial in trials]
    places = _numbers(axes, picks) if all(map(_is_number, picks)) else _words(axes, picks)
    for trial, x in zip(trials, places, strict=True):
        value = (trial.values or [])[i]
        axes.plot(
            x, value, marker="o" if trial.feasible else "x", color=trial_colour(trial), markersize=6, linestyle=""
        )
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.margins(0.12, 0.08)
    sns.despine(ax=axes)


def _numbers(axes: Axes, picks: Sequence[Any]) -> list[float]:
    """Set an axis of numbers, and return their places on it."""
    found = sorted(set(picks))
    if far_apart(found):
        log_axis(axes)
        if len(found) <= FEW:
            axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=all(isinstance(one, int) for one in found)))
    if len(found) <= FEW:
        axes.set_xticks(found, [f"{one:.3g}" for one in found], rotation=90 if len(found) > 4 else 0, fontsize=9)
    return [float(pick) for pick in picks]


def _words(axes: Axes, picks: Sequence[Scalar]) -> list[float]:
    """Set an axis of names, in the order of the trials, and return their places on it."""
    found = list(dict.fromkeys(map(str, picks)))
    turn = 90 if max(map(len, found)) > LONGEST or len(found) > 4 else 0
    axes.set_xticks(range(len(found)), found, rotation=turn, fontsize=9)
    axes.set_xlim(-0.5, len(found) - 0.5)
    return [float(found.index(str(pick))) for pick in picks]


def _is_number(pick: Any) -> bool:
    return isinstance(pick, int | float) and not isinstance(pick, bool)
