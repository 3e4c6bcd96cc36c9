"""The picture of a stream: the score on each task after each stage, one heat map an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.reporting.plots.caption import Asked, caption, write_caption
from experiments.reporting.plots.style import STYLE
from experiments.reporting.text import format_number
from experiments.scorecard.bootstrap import Array

COLUMNS = 3  # arms in a row
DARK = "#1d2430"
SHADES = sns.light_palette("#4c8ec8", as_cmap=True)  # light enough at its end for dark numbers, also in grey print


def stream_figure(
    matrices: Mapping[str, Array], tasks: Sequence[str], title: str, asked: Asked | None = None
) -> Figure:
    """Draw one panel an arm: a row a stage (the base model first), a column a task, framed when just learned.

    matrices: by arm, (T + 1, T), `scorecard.stream_matrix`'s first draw. One scale for all arms, the darker the better.
    asked: for the caption. Raises ValueError without an arm.
    """
    if not matrices:
        raise ValueError("no arm has a matrix to draw: evaluate each task after each stage")
    values = np.stack(list(matrices.values()))
    low, high = _limits(values)
    columns = min(COLUMNS, len(matrices))
    rows = -(-len(matrices) // columns)
    width = 1.2 + columns * (0.7 + 0.75 * len(tasks))
    with sns.axes_style("white"), matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, width), 0.5 + rows * (1.1 + 0.42 * (len(tasks) + 1))), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in panels.flat[len(matrices) :]:
            axes.set_visible(False)
        for axes, (name, matrix) in zip(panels.flat, matrices.items(), strict=False):
            _heat(axes, name, matrix, tasks, (low, high))
        for axes in panels[:, 0]:
            axes.set_ylabel("after stage")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        write_caption(figure, caption(asked or Asked(), "shares of right answers, or nats per token of texts", ""))
    return figure


def _heat(axes: Axes, name: str, matrix: Array, tasks: Sequence[str], limits: tuple[float, float]) -> None:
    words = [task.replace("_", " ") for task in tasks]
    marks = np.vectorize(format_number)(matrix)
    sns.heatmap(
        matrix, ax=axes, vmin=limits[0], vmax=limits[1], cmap=SHADES, cbar=False, annot=marks, fmt="", linewidths=1,
        xticklabels=words, yticklabels=["base model", *words], annot_kws={"fontsize": 10, "color": DARK},
    )  # fmt: skip
    for j in range(len(tasks)):
        axes.add_patch(Rectangle((j, j + 1), 1, 1, fill=False, edgecolor=DARK, linewidth=1.6, clip_on=False))
    axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
    axes.tick_params(axis="x", rotation=25)
    axes.tick_params(axis="y", rotation=0)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right")


def _limits(values: Array) -> tuple[float, float]:
    """Limit the colours: accuracies from 0 to the highest, at least .1; texts from the lowest to the highest."""
    if values.min() < 0:
        return float(values.min()), float(values.max())
    return 0.0, max(0.1, float(values.max()))
