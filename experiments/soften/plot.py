"""The picture of a path: figures against alpha, the base at 0, and gain against retention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.common.colours import PALETTE
from experiments.records import Estimate
from experiments.reporting.plots.caption import SHARES, Asked, caption, write_caption
from experiments.reporting.plots.style import STYLE
from experiments.scorecard.figures import FIGURES, GAINS

LINE, CHOSEN = PALETTE[0], PALETTE[3]
Cards = Mapping[float, Mapping[str, Estimate]]


def path_figure(cards: Cards, chosen: float | None, asked: Asked | None = None) -> Figure:
    """Draw a panel for each figure against alpha, and gain against retention if both were measured.

    cards: figures by alpha. chosen: the alpha that is marked. Bands: 95 % intervals. asked: for the caption.
    """
    names = [name for name in (*GAINS, "retention", "kl") if all(name in card for card in cards.values())]
    gain = next((name for name in names if name in GAINS), None)
    both = gain is not None and "retention" in names
    figure = Figure(figsize=(4.0 * max(1, len(names) + both), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        panels = figure.subplots(1, max(1, len(names) + both), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=False):
            _against_alpha(axes, cards, name, chosen)
        if gain and both:
            _plane(panels[-1], cards, gain, chosen)
        unit = f"measured on the half that did not choose; {SHARES}"
        write_caption(figure, caption(asked or Asked(), unit, "bands"))
    return figure


def _against_alpha(axes: Axes, cards: Cards, name: str, chosen: float | None) -> None:
    row = FIGURES[name]
    start = 0.0 if row.unchanged is None else row.unchanged
    found = [card[name] for card in cards.values()]
    axes.axhline(start, color="#b9c0c9", linestyle=":", zorder=0)
    axes.plot([0, *cards], [start, *(e.value for e in found)], color=LINE, marker="o", markersize=5)
    low = [e.value if e.low is None else e.low for e in found]
    high = [e.value if e.high is None else e.high for e in found]
    axes.fill_between(list(cards), low, high, color=LINE, alpha=0.15, linewidth=0)
    if chosen is not None:
        look: dict[str, Any] = {"color": CHOSEN, "fontsize": 9, "ha": "right"}
        axes.axvline(chosen, color=CHOSEN, linestyle="--", linewidth=1)
        axes.annotate("chosen ", (chosen, 0.03), xycoords=("data", "axes fraction"), **look)
    axes.set_xlabel("alpha: 0 the base, 1 the model")
    axes.set_title(row.labelled, loc="left", fontsize=11, fontweight="bold")
    sns.despine(ax=axes)


def _plane(axes: Axes, cards: Cards, gain: str, chosen: float | None) -> None:
    x = [0.0, *(card[gain].value for card in cards.values())]
    y = [1.0, *(card["retention"].value for card in cards.values())]
    axes.axhline(1, color="#b9c0c9", linestyle=":", zorder=0)
    axes.plot(x, y, color=LINE, marker="o", markersize=5)
    for alpha, right, up in zip((0.0, *cards), x, y, strict=True):
        mark = alpha == chosen
        axes.annotate(f"{alpha:g}", (right, up), xytext=(5, 5), textcoords="offset points", fontsize=9,
                      color=CHOSEN if mark else "#4a5260", fontweight="bold" if mark else "normal")  # fmt: skip
    axes.set_xlabel(FIGURES[gain].labelled)
    axes.set_ylabel("retention")
    axes.set_title("Gain and retention, by alpha", loc="left", fontsize=11, fontweight="bold")
    sns.despine(ax=axes)
