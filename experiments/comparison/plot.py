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
from experiments.reporting.differences import SIGNIFICANT
from experiments.reporting.plots.caption import SHARES, Asked, caption, write_caption
from experiments.reporting.plots.decades import far_apart, log_axis
from experiments.reporting.plots.style import MARKERS, STYLE
from experiments.scorecard.figure import SHARE
from experiments.scorecard.figures import FIGURES

COLUMNS = 4  # panels in a row


def comparison_figure(comparison: Comparison, title: str) -> Figure:
    """Draw one panel a figure. Filled: differs significantly from the reference (Holm's p below .05); hollow: does not.

    Hue: method; shade: learning rate. The reference is a square, the dotted line the base model. A run without a figure
    has an empty row in its panel. KLs that are far apart are on a log axis, which has no place for the base's 0.
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
        write_caption(figure, note_of(comparison))
    return figure


def note_of(comparison: Comparison) -> str:
    """Say what the marks mean, and what the picture rests on."""
    note = f"square: reference ({comparison.reference}); filled: differs from it, Holm p < .05"
    return f"{note}\n{caption(Asked(comparison.questions), SHARES)}"


def significant_runs(comparison: Comparison, name: str) -> set[str]:
    """Return the runs that differ significantly from the reference in a figure."""
    return {d.name for d in comparison.differences if d.figure == name and d.p_holm < SIGNIFICANT}


def _panel(axes: Axes, comparison: Comparison, name: str) -> None:
    significant = significant_runs(comparison, name)
    unchanged, log = FIGURES[name].unchanged, on_log_axis(comparison, name)
    if unchanged is not None and not log:
        axes.axvline(unchanged, color="#9aa1ab", linewidth=1, linestyle=":", zorder=0)
    for row, (run, card) in enumerate(comparison.cards.items()):
        if name in card and math.isfinite(card[name].value):
            reference = run == comparison.reference
            marker = "s" if reference else MARKERS[0]
            colour = arm_colour(*comparison.methods[run]) if run in comparison.methods else UNKNOWN
            _point(axes, row, card[name], colour, marker, reference or run in significant)
    axes.set_title(FIGURES[name].title, fontsize=10, loc="left")
    axes.set_xlabel(FIGURES[name].unit if FIGURES[name].unit != SHARE else "", fontsize=8)
    axes.tick_params(axis="x", labelsize=9)
    if log:
        log_axis(axes)
    else:
        axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.12)
    sns.despine(ax=axes)


def on_log_axis(comparison: Comparison, name: str) -> bool:
    """Whether a figure's panel has a log axis: a KL of 12 next to others of .5 would make them one blob."""
    known = [card[name] for card in comparison.cards.values() if name in card]
    ends = [end for e in known for end in (e.value, e.low, e.high) if end is not None and math.isfinite(end)]
    return FIGURES[name].decades and far_apart(ends)


def _point(axes: Axes, row: int, value: Estimate, colour: object, marker: str, filled: bool) -> None:
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [row, row], color=colour, linewidth=1.6, zorder=2)
    face = colour if filled else "white"
    axes.plot(value.value, row, marker=marker, color=colour, markerfacecolor=face, markersize=7, zorder=3)
