"""The picture of a comparison: one panel a figure, one row a run, 95 % intervals."""

from __future__ import annotations

import math

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.common.colours import UNKNOWN, arm_colour
from experiments.comparison.compare import Comparison
from experiments.records import Estimate
from experiments.reporting.plots.caption import Asked, caption, write_caption
from experiments.reporting.plots.style import MARKERS, STYLE
from experiments.scorecard.figures import FIGURES

COLUMNS = 4  # panels in a row


def comparison_figure(comparison: Comparison, title: str) -> Figure:
    """Draw one panel a figure. Filled: differs significantly from the reference (Holm's p below .05); hollow: does not.

    Hue: method; shade: learning rate. The reference is a square, the dotted line the base model. A run without a figure
    has an empty row in its panel.
    """
    names, figures = list(comparison.cards), comparison.figures()
    across = max(1, min(COLUMNS, len(figures)))
    down = max(1, math.ceil(len(figures) / across))
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        size = (2.6 + 2.1 * across, 0.9 + down * (0.95 + 0.3 * len(names)))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
        for axes, name in zip(panels, figures, strict=False):
            _panel(axes, comparison, name)
        for axes in panels[len(figures) :]:
            axes.set_visible(False)
        for axes in panels[::across]:
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        note = f"square: reference ({comparison.reference}); filled: differs from it, Holm p < .05"
        write_caption(figure, f"{note}\n{caption(Asked(comparison.items))}")
    return figure


def _panel(axes: Axes, comparison: Comparison, name: str) -> None:
    significant = {d.name for d in comparison.differences if d.figure == name and d.p_holm < 0.05}
    unchanged = FIGURES[name].unchanged
    if unchanged is not None:
        axes.axvline(unchanged, color="#9aa1ab", linewidth=1, linestyle=":", zorder=0)
    for row, (run, card) in enumerate(comparison.cards.items()):
        if name in card and math.isfinite(card[name].value):
            reference = run == comparison.reference
            marker = "s" if reference else MARKERS[0]
            colour = arm_colour(*comparison.methods[run]) if run in comparison.methods else UNKNOWN
            _point(axes, row, card[name], colour, marker, reference or run in significant)
    axes.set_title(FIGURES[name].title, fontsize=10, loc="left")
    axes.tick_params(axis="x", labelsize=9)
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.12)
    sns.despine(ax=axes)


def _point(axes: Axes, row: int, value: Estimate, colour: object, marker: str, filled: bool) -> None:
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [row, row], color=colour, linewidth=1.6, zorder=2)
    face = colour if filled else "white"
    axes.plot(value.value, row, marker=marker, color=colour, markerfacecolor=face, markersize=7, zorder=3)
