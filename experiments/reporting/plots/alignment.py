"""Pictures of what moved inside: heat maps of the alignment metrics by layer, and the probe sentences in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.common.colours import PALETTE
from experiments.evaluation.similarity import Array, projection
from experiments.evaluation.suites.alignment import PAIRS, States, sentences
from experiments.reporting.plots.caption import Asked, caption, write_caption
from experiments.reporting.plots.style import MARKERS, STYLE
from experiments.reporting.text import format_number
from experiments.scorecard.figure import FINE

if TYPE_CHECKING:
    import pandas as pd

# metric: its title, and whether a large value means far from the base
TITLES = {
    "cosine": ("mean cosine", False),
    "relative_l2": ("relative L2 distance", True),
    "cka": ("linear CKA", False),
    "neighbours": ("shared nearest neighbours", False),
    "update": ("size of the weights' change, |dW| / |W|", True),
    "divergence": ("divergence", True),
    "alpha": ("alpha", True),
    "alpha_spread": ("alpha, standard deviation over the sentences", True),
}
GREY = "#5b6470"


def alignment_figure(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Draw one panel a metric: a row an arm, a column a layer, the darker the further away. 9 inches wide.

    tables: by arm; the index is the layer, the columns are metrics. A layer that an arm's table lacks stays blank.
    Each row ends in its mean over layers. Raises ValueError if there is nothing to draw.
    """
    if not tables or all(table.empty for table in tables.values()):
        raise ValueError("no arm has a table with a layer in it: measure suite `alignment`, or give layer tables")
    metrics = list(dict.fromkeys(str(column) for table in tables.values() for column in table.columns))
    height = 0.75 + len(metrics) * (0.75 + 0.26 * len(tables))
    with sns.axes_style("white"), matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, height), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
        for axes, metric in zip(panels, metrics, strict=True):
            _heat(axes, tables, metric)
        panels[-1].set_xlabel("layer")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        write_caption(figure, caption(Asked({"probe sentences": len(sentences())}), "numbers without unit", ""))
    return figure


def _heat(axes: Axes, tables: Mapping[str, pd.DataFrame], metric: str) -> None:
    layers = sorted({int(layer) for table in tables.values() for layer in table.index})
    values = np.full((len(tables), len(layers)), np.nan)
    for row, table in enumerate(tables.values()):
        if metric in table:
            values[row, [layers.index(int(i)) for i in table.index]] = table[metric]
    name, far = TITLES.get(metric, (metric, True))
    low, high = (0.0, 1.0) if metric == "alpha" else _limits(values, far)
    cells = axes.pcolormesh(
        np.arange(len(layers) + 1) - 0.5, np.arange(len(tables) + 1) - 0.5, values,
        cmap="mako_r" if far else "mako", vmin=low, vmax=high, edgecolors="white", linewidth=0.4,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_yticks(range(len(tables)), list(tables))
    step = max(1, -(-len(layers) // 16))
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.set_title(name, loc="left", fontsize=10)
    axes.set_facecolor("#e4e7eb")
    sns.despine(ax=axes, left=True, bottom=True)
    for row, line in enumerate(values):
        mean = float(np.nanmean(line)) if np.isfinite(line).any() else float("nan")
        axes.annotate(
            format_number(mean, places=FINE), (len(layers) - 0.5, row), (5, 0), textcoords="offset points", va="center",
            fontsize=9, color=GREY, annotation_clip=False,
        )  # fmt: skip
    axes.annotate("mean", (1, 1), (5, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8, color=GREY)
    bar = axes.figure.colorbar(cells, ax=axes, pad=0.06, aspect=8, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


def _limits(values: Array, far: bool) -> tuple[float, float]:
    """Limit the colours: similarities end at 1, distances start at 0; a tiny range is widened."""
    found = values[np.isfinite(values)]
    if far:
        return 0.0, max(1e-3, float(found.max(initial=0.0)))
    return min(0.99, float(found.min(initial=1.0))), 1.0


def projection_figure(base: States, tuned: Mapping[str, States], layers: Sequence[int], title: str) -> Figure:
    """Draw the paper's sentences "X is to Y" on the base's two principal axes: one row an arm, one column a layer.

    Hollow: base; filled: tuned, joined to it by a line. Colour and marker tell the category.
    Raises ValueError for a layer that the model does not have.
    """
    beyond = [layer for layer in layers if not 0 <= layer < len(base.layers)]
    if beyond or not layers or not tuned:
        raise ValueError(f"layers={list(layers)}: give one or more of 0..{len(base.layers) - 1}, and one or more arms")
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 3.2 * len(layers), 1.3 + 2.9 * len(tuned)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(tuned), len(layers), squeeze=False, sharex="col", sharey="col")
        for row, (name, states) in zip(panels, tuned.items(), strict=True):
            row[0].set_ylabel(name, fontweight="bold")
            for axes, layer in zip(row, layers, strict=True):
                _scatter(axes, *projection(base.layers[layer], states.layers[layer]))
        for axes, layer in zip(panels[0], layers, strict=True):
            axes.set_title(f"layer {layer}", fontsize=10)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.legend(handles=_key(), loc="outside lower left", ncols=6, frameon=False, fontsize=9, handletextpad=0.3)
        write_caption(figure, caption(Asked({"probe sentences": len(sentences()) // 2}), "axes without unit", ""))
    return figure


def _scatter(axes: Axes, before: Array, after: Array) -> None:
    categories = [category for category, _ in sentences()][: len(before) // 2]  # the second half turns the pairs round
    for category, (colour, marker) in _looks().items():
        rows = [i for i, name in enumerate(categories) if name == category]
        for i in rows:
            axes.plot(*zip(before[i], after[i], strict=True), color=colour, linewidth=0.8, alpha=0.6, zorder=1)
        shape: dict[str, Any] = {"marker": marker, "markersize": 6, "linestyle": "", "color": colour, "zorder": 2}
        axes.plot(*before[rows].T, **shape, markerfacecolor="white", markeredgewidth=1.2)
        axes.plot(*after[rows].T, **shape)
    axes.set_xticks([])
    axes.set_yticks([])
    sns.despine(ax=axes)


def _looks() -> dict[str, tuple[Any, str]]:
    return dict(zip(PAIRS, zip(PALETTE, MARKERS, strict=False), strict=False))


def _key() -> list[Line2D]:
    shape: dict[str, Any] = {"linestyle": "", "markersize": 6}
    categories = [Line2D([], [], color=c, marker=m, label=name, **shape) for name, (c, m) in _looks().items()]
    empty = Line2D([], [], color=GREY, marker="o", markerfacecolor="white", label="base", **shape)
    return [*categories, empty, Line2D([], [], color=GREY, marker="o", label="tuned", **shape)]
