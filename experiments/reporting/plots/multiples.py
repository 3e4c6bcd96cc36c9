"""Retention against gain of many arms: a small panel for each arm, the others grey, all with the same axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.records import MEASURED, ArmResult
from experiments.reporting.plots.caption import SHARES, Asked, caption, write_caption
from experiments.reporting.plots.forgetting import START, Look, forgetting_figure, looks, points
from experiments.reporting.plots.style import STYLE
from experiments.reporting.text import gain_name, rate_text
from experiments.scorecard.figures import FIGURES

MOST = 8  # arms in one panel: with more, lines and names cover each other
COLUMNS = 4
OTHERS = "#d5d9de"  # lines of the other arms
PANEL = (2.4, 2.1)  # inches

Drawn = tuple[ArmResult, Look]


def gained_kept_figure(results: Sequence[ArmResult], title: str, asked: Asked | None = None) -> Figure:
    """Draw retention against gain: all arms in one panel, or from MOST + 1 on a small panel for each arm."""
    drawn = [result for result in results if points(result)]
    return (forgetting_figure if len(drawn) <= MOST else multiples_figure)(results, title, asked)


def multiples_figure(results: Sequence[ArmResult], title: str, asked: Asked | None = None) -> Figure:
    """Draw a panel for each arm, with its learning rates in shades of its colour and 95 % bars at the ends."""
    drawn = [(result, look) for result, look in zip(results, looks(results), strict=True) if points(result)]
    arms = list(dict.fromkeys(result.arm for result, _ in drawn))
    across = min(COLUMNS, max(1, len(arms)))
    down = max(1, math.ceil(len(arms) / across))
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        size = (0.9 + PANEL[0] * across, 1.1 + PANEL[1] * down)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes, arm in zip(panels.flat, arms, strict=False):
            _panel(axes, arm, drawn)
        for axes in panels.flat[len(arms) :]:
            axes.set_visible(False)
        for column in range(across):  # the lowest panel of a column that is drawn has the numbers of its axis
            last = [axes for axes in panels[:, column] if axes.get_visible()][-1]
            last.tick_params(labelbottom=True)
            last.set_xlabel(FIGURES[gain_name(results)].labelled)
        for axes in panels[:, 0]:
            axes.set_ylabel(FIGURES["retention"].title)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        rests = f"{caption(asked or Asked(), SHARES)}; up and right is better; grey: the other arms"
        crosses = any(result.status != "finished" for result, _ in drawn)
        write_caption(figure, rests + "; cross: an arm that did not finish" * crosses)
    return figure


def _panel(axes: Axes, arm: str, drawn: Sequence[Drawn]) -> None:
    axes.axhline(1, color="#b9c0c9", linewidth=1, zorder=0)
    axes.axvline(0, color="#b9c0c9", linewidth=1, zorder=0)
    for result, _ in drawn:
        if result.arm != arm:
            axes.plot(*_path(result), color=OTHERS, linewidth=0.8, zorder=1)
    own = [(result, look) for result, look in drawn if result.arm == arm]
    for result, look in own:
        _draw(axes, result, look)
        if len(own) > 1 and result.method != MEASURED:
            x, y = (values[-1] for values in _path(result))
            axes.annotate(rate_text(result.learning_rate), (x, y), (4, 4), textcoords="offset points", fontsize=8)
    axes.plot(*START, marker="o", markersize=4, color="#1d2430", zorder=6)
    axes.set_title(arm if len(arm) <= 34 else f"{arm[:31]}...", loc="left", fontsize=9, fontweight="bold")
    axes.margins(0.08, 0.1)
    sns.despine(ax=axes)


def _draw(axes: Axes, result: ArmResult, look: Look) -> None:
    x, y = _path(result)
    axes.plot(x, y, color=look.colour, linewidth=1.4, zorder=3)
    (gain, retention), finished = points(result)[-1], result.status == "finished"
    if finished:
        for ends, one in (((gain.low, gain.high), 0), ((retention.low, retention.high), 1)):
            if None not in ends:
                line = (ends, [y[-1]] * 2) if one == 0 else ([x[-1]] * 2, ends)
                axes.plot(*line, color=look.colour, linewidth=1, alpha=0.55, zorder=2)
    axes.plot(x[-1], y[-1], marker=look.marker if finished else "x", color=look.colour, markersize=6,
              markerfacecolor=look.face, zorder=5)  # fmt: skip


def _path(result: ArmResult) -> tuple[list[float], list[float]]:
    path = points(result)
    return [START[0], *(g.value for g, _ in path)], [START[1], *(r.value for _, r in path)]
