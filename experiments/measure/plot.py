"""The picture of models that were measured at several checkpoints: figures against steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.common.colours import line_colours
from experiments.records import MEASURED, ArmResult
from experiments.reporting.plots.caption import SHARES, Asked, caption, write_caption
from experiments.reporting.plots.style import MARKERS, STYLE
from experiments.reporting.text import label
from experiments.scorecard.figures import FIGURES, GAINS

SHOWN = (*GAINS, "retention", "kl", "perplexity_drift")
WIDTH = 4.0  # inches of a panel


def steps_figure(results: Sequence[ArmResult], asked: Asked | None = None) -> Figure:
    """Draw a panel for each figure, and in it a line for each model over its steps. Bands: 95 % intervals.

    The base model is at step 0. A model that was measured once has two points. asked: for the caption.
    """
    names = [name for name in SHOWN if any(name in point for r in results for point in r.trajectory)]
    figure = Figure(figsize=(WIDTH * max(1, len(names)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        panels = figure.subplots(1, max(1, len(names)), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=False):
            _panel(axes, name, results)
        if len(results) > 1:
            panels[0].legend(frameon=False, fontsize=9)
        write_caption(figure, caption(asked or Asked(), SHARES, "bands"))
    return figure


def _panel(axes: Axes, name: str, results: Sequence[ArmResult]) -> None:
    row = FIGURES[name]
    colours = line_colours([(r.arm, "" if r.method == MEASURED else r.method, r.learning_rate) for r in results])
    if row.unchanged is not None:
        axes.axhline(row.unchanged, color="#b9c0c9", linestyle=":", zorder=0)
    for i, result in enumerate(results):
        points = [(point["step"], point[name]) for point in result.trajectory if name in point]
        steps, found = [step for step, _ in points], [estimate for _, estimate in points]
        look: dict[str, Any] = {"color": colours[i], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(steps, [e.value for e in found], label=label(result), linewidth=1.5, markersize=5, **look)
        low, high = ([e.value if end is None else end for e, end in zip(found, ends, strict=True)]
                     for ends in ([e.low for e in found], [e.high for e in found]))  # fmt: skip
        axes.fill_between(steps, low, high, color=colours[i], alpha=0.15, linewidth=0)
    axes.set_xlabel("step")
    axes.set_title(row.labelled, loc="left", fontsize=11, fontweight="bold")
    sns.despine(ax=axes)
