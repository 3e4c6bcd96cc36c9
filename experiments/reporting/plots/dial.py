"""Gain, retention and KL of one trained arm against the share of its copies (`posthoc --op dial`)."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.common.colours import UNKNOWN, arm_colour
from experiments.records import ArmResult
from experiments.reporting.plots.caption import SHARES, Asked, caption, write_caption
from experiments.reporting.plots.style import MARKERS, STYLE
from experiments.reporting.text import gain_name
from experiments.scorecard.figures import FIGURES

SHOWN = ("retention", "kl")  # after the gain


def dial_figure(
    results: Sequence[ArmResult], title: str, asked: Asked | None = None, trained: float | None = None
) -> Figure:
    """Draw gain (`gain_name`), retention and KL against alpha, as far as they were measured.

    Bars: 95 % intervals; dotted: the base model.
    results: of operations named `dial ALPHA` on one arm. asked: for the caption. trained: the alpha of the training,
    which is marked. Raises ValueError for a result of another operation.
    """
    points = sorted((_alpha(result), result.scorecard) for result in results)
    names = (gain_name(results), *SHOWN)
    shown = [FIGURES[name] for name in names if any(name in card for _, card in points)] or [FIGURES[SHOWN[0]]]
    figure = Figure(figsize=(4 * len(shown), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        colour = arm_colour(results[0].method, results[0].learning_rate) if results else UNKNOWN
        for i, (axes, row) in enumerate(zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True)):
            known = [(alpha, card[row.name]) for alpha, card in points if row.name in card]
            x, y = [alpha for alpha, _ in known], [e.value for _, e in known]
            spread = [
                [e.value - (e.value if e.low is None else e.low) for _, e in known],
                [(e.value if e.high is None else e.high) - e.value for _, e in known],
            ]
            axes.axhline(row.unchanged, color="#b9c0c9", linestyle=":", zorder=0)
            axes.errorbar(x, y, yerr=spread, color=colour, marker=MARKERS[i], linewidth=1.5, capsize=3)
            if trained is not None:
                axes.axvline(trained, color="#9aa1ab", linestyle="--", linewidth=1, zorder=0)
                axes.annotate(" trained here", (trained, 0.02), xycoords=("data", "axes fraction"), fontsize=9)
            axes.set_xlabel("share of the trained copies (alpha)")
            axes.set_title(row.labelled, loc="left", fontsize=11, fontweight="bold")
            sns.despine(ax=axes)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        write_caption(figure, caption(asked or Asked(), SHARES))
    return figure


def _alpha(result: ArmResult) -> float:
    operation, _, share = (result.operation or "").partition(" ")
    if operation != "dial":
        raise ValueError(f"dial_figure draws results of posthoc --op dial, but got {result.label!r}")
    return float(share)
