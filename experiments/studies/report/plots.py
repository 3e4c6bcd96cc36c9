"""The pictures of a study: trajectories of the arms, the Pareto front, importances, and ranks next to the paper's."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common.colours import PALETTE, UNKNOWN, arm_colour, line_colours
from experiments.reporting.plots.caption import SHARES, Asked, caption, write_caption
from experiments.reporting.plots.style import MARKERS, STYLE
from experiments.scorecard.figure import SHARE
from experiments.scorecard.figures import FIGURES
from experiments.studies.config import Objective
from experiments.studies.selection import ReportRow
from experiments.studies.space import short_names
from experiments.studies.trial_results import result_of
from experiments.studies.trials import Trial

SOFT = "#5b6470"
DASHES = ((), (5, 2), (1.2, 1.4))


def trajectory_figure(arms: Sequence[ReportRow], gain: str = "gain", asked: Asked | None = None) -> Figure:
    """Draw gain (a figure's name) and kept accuracy over steps; each arm has its colour, marker and dashes.

    asked: for the caption.
    """
    figure = _figure(10, 4.6)
    colours = line_colours([(arm.name, arm.result.method, arm.result.learning_rate) for arm in arms])
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        panels = figure.subplots(1, 2)
        for axes, name in zip(panels, (gain, "kept_accuracy"), strict=True):
            start = arms[0].result.trajectory[0].get(name) if arms and arms[0].result.trajectory else None
            level = FIGURES[name].unchanged
            level = start.value if level is None and start else level
            if level is not None:
                axes.axhline(level, color="#b9c0c9", linewidth=1, zorder=0)
            for i, arm in enumerate(arms):
                _line(axes, arm, name, i, colours[i])
            axes.set_xlabel("training step")
            axes.set_title(textwrap.fill(FIGURES[name].axis, 56), loc="left", fontsize=10)
            sns.despine(ax=axes)
        handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[0]))
        if handles:
            inches = 0.7 + 0.08 * max(map(len, labels))  # of an entry; more columns than fit would be cut off
            ncols = max(1, min(5, int(figure.get_figwidth() / inches)))
            figure.legend(
                handles, labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9, handlelength=3.2
            )
        write_caption(figure, caption(asked or Asked(), SHARES, ""))
    return figure


def pareto_figure(
    trials: Sequence[Trial], front: Sequence[int], objectives: Sequence[Objective], asked: Asked | None = None
) -> Figure:
    """Draw all trials by the first two objectives: the front as a staircase and numbered, infeasible ones as crosses.

    Hue: method; shade: learning rate. asked: for the caption.
    """
    figure = _figure(7.5, 5.2)
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        axes = figure.subplots()
        done = [trial for trial in trials if trial.values]
        best = sorted((t for t in done if t.feasible and t.number in front), key=_values)
        for want, marker, name in ((True, "o", "trial"), (False, "x", "breaks a constraint")):
            if found := [t for t in done if t.feasible is want]:
                colours = [trial_colour(trial) for trial in found]
                axes.scatter(*_columns(found), s=40, marker=marker, c=colours, label=name, zorder=2)
        where: Literal["pre", "post"] = "post" if objectives[0].direction == "minimize" else "pre"
        axes.step(*_columns(best), where=where, color=SOFT, linewidth=1.2, label="Pareto front", zorder=1)
        for trial in best:
            axes.annotate(f"{trial.number}", _values(trial), (5, 5), textcoords="offset points", fontsize=9)
        axes.set(xlabel=objective_label(objectives[0]), ylabel=objective_label(objectives[1]))
        axes.legend(frameon=False, fontsize=9)
        axes.margins(0.08)
        sns.despine(ax=axes)
        write_caption(figure, f"{len(done)} trials; {caption(asked or Asked(), SHARES, '')}; hue: method, shade: rate")
    return figure


def objective_label(objective: Objective) -> str:
    """Write an objective at an axis, with its unit: `kl, nats per token (lower is better)`."""
    row = FIGURES.get(objective.figure)
    unit = f", {row.unit}" if row is not None and row.unit not in ("", SHARE) else ""
    return f"{objective.figure}{unit}\n({objective.better})"


def trial_colour(trial: Trial) -> str:
    """Return the colour of a trial's method and learning rate; grey without a run."""
    if not trial.runs:
        return UNKNOWN
    result = result_of(trial.runs[0])
    return arm_colour(result.method, result.learning_rate)


def importance_figure(importances: Mapping[str, Mapping[str, float]], trials: int, seeds: int = 1) -> Figure:
    """Draw the share of each objective's variance that a dimension explains alone, as bars.

    trials: complete ones. seeds: of each.
    """
    short = short_names(dict.fromkeys(key for shares in importances.values() for key in shares))
    rows = [
        {"dimension": short[key], "objective": objective, "share": share}
        for objective, shares in importances.items()
        for key, share in shares.items()
    ]
    table = pd.DataFrame(rows)
    figure = _figure(7.5, 1.4 + 0.45 * len(table))
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        axes = figure.subplots()
        sns.barplot(
            table,
            x="share",
            y="dimension",
            hue="objective",
            palette=list(PALETTE[: table["objective"].nunique()]),
            ax=axes,
        )
        axes.set(xlabel="importance (share of variance, fANOVA)", ylabel="", xlim=(0, 1))
        axes.legend(frameon=False, fontsize=9, title=None, loc="lower right")
        sns.despine(ax=axes)
        write_caption(figure, caption(Asked({"complete trials": trials}, seeds), "shares of variance", ""))
    return figure


def rank_figure(table: pd.DataFrame, seeds: int = 1) -> Figure:
    """Draw a row per arm, the paper's best at the top: its rank in the paper and here, joined, in both accuracies."""
    figure = _figure(10, 1.6 + 0.26 * len(table))
    colour = PALETTE[0]
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        panels = figure.subplots(1, 2)
        for axes, (column, title) in zip(panels, (("new", "new task"), ("kept", "kept abilities")), strict=True):
            rows = table.sort_values(f"paper_{column}_rank", kind="stable")
            paper, ours = rows[f"paper_{column}_rank"], rows[f"our_{column}_rank"]
            places = range(len(rows))
            axes.hlines(places, paper, ours, color="#b9c0c9", linewidth=1.5, zorder=1)
            axes.scatter(paper, places, s=40, facecolor="white", edgecolor=SOFT, label="in the paper", zorder=2)
            axes.scatter(ours, places, s=30, color=colour, label="here", zorder=3)
            axes.set_yticks(places, rows.index, fontsize=9)
            axes.invert_yaxis()
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("rank (1 is best)")
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
            sns.despine(ax=axes)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        write_caption(figure, caption(Asked({"arms": len(table)}, seeds), "ranks", ""))
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _line(axes: Axes, arm: ReportRow, name: str, i: int, colour: str) -> None:
    points = [(p["step"], p[name].value) for p in arm.result.trajectory if name in p and math.isfinite(p[name].value)]
    if not points:
        return
    axes.plot(
        *zip(*points, strict=True), color=colour, marker=MARKERS[i % len(MARKERS)], markersize=5,
        linewidth=1.5, dashes=DASHES[i % 3], label=arm.name,
    )  # fmt: skip


def _values(trial: Trial) -> tuple[float, float]:
    first, second, *_ = trial.values or (math.nan, math.nan)
    return first, second


def _columns(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    return [_values(t)[0] for t in trials], [_values(t)[1] for t in trials]
