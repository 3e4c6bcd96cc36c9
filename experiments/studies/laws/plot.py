"""The picture of a mixture law: both losses over the share of new tokens, and the largest share that is safe."""

from __future__ import annotations

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from experiments.reporting.plots.caption import write_caption
from experiments.reporting.plots.style import MARKERS, STYLE
from experiments.reporting.text import with_interval
from experiments.studies.laws.mixture import MixtureLaw

TITLES = {"new": "new domain", "kept": "kept text"}
LOSS = "loss, nats per token"


def plot_law(law: MixtureLaw, new_loss: str = LOSS) -> Figure:
    """Draw both losses over the share of new tokens. Lines: the law at each horizon, the longest with its 95 % band.

    Dotted: the longest horizon as the fit without it predicts it. new_loss: label of the loss on the new domain, if it
    is not in nats.
    """
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for axes, kind in ((left, "new"), (right, "kept")):
            _panel(axes, law, kind, new_loss if kind == "new" else LOSS)
        _critical(right, law)
        left.legend(title="tokens", fontsize=9, title_fontsize=9, frameon=False)
        figure.suptitle("Loss over the share of new-domain tokens", x=0.01, ha="left", fontsize=12, fontweight="bold")
        rests = (
            f"n: {len(law.table)} losses of {law.table['run'].nunique()} runs, 1 seed each; nats per token, where no"
        )
        write_caption(figure, f"{rests} unit is named; band and brackets: 95 % intervals over residuals of the fit")
    return figure


def _panel(axes: Axes, law: MixtureLaw, kind: str, unit: str) -> None:
    ratios = np.linspace(law.table["ratio"].min(), 1, 200)
    horizons = sorted(law.table["tokens"].unique())
    colours = sns.color_palette("viridis", len(horizons) + 1)[::-1][1:]  # the lightest does not print
    curve = law.new if kind == "new" else law.kept
    axes.fill_between(ratios, *law.band(kind, ratios), color=colours[-1], alpha=0.18, linewidth=0)
    for i, (tokens, colour) in enumerate(zip(horizons, colours, strict=True)):
        rows = law.table[law.table["tokens"] == tokens]
        axes.plot(ratios, curve(ratios, tokens), color=colour, linewidth=1.5)
        marker = MARKERS[i % len(MARKERS)]
        axes.plot(rows["ratio"], rows[f"loss_{kind}"], marker, color=colour, markersize=5.5, label=_count(tokens))
    if law.predicted:
        axes.plot(ratios, law.predicted[kind](ratios, law.tokens), color=colours[-1], linestyle=":", linewidth=1.8,
                  label="the longest, predicted")  # fmt: skip
    axes.set_title(_title(law, kind), fontsize=9.5, loc="left")
    axes.set_xlabel("R, share of new-domain tokens")
    axes.set_ylabel(unit)
    sns.despine(ax=axes)


def _title(law: MixtureLaw, kind: str) -> str:
    """Write the formula, its exponents with their intervals, and its errors on held-out data."""
    curve = law.new if kind == "new" else law.kept
    power = f"R^{curve.s:.2f}" + (f" (T/{_count(curve.unit)})^{curve.t:.2f}" if law.predicted else "")
    names = "st" if law.predicted else "s"
    exponents = ", ".join(f"{name} {with_interval(law.exponent(kind, name))}" for name in names)
    held = [(what, law.errors.get(f"{name} {kind}")) for what, name in (("R", "ratio"), ("T", "horizon"))]
    missed = ", ".join(f"{what} {with_interval(m.rms, places=(3, 2, 2))}" for what, m in held if m)
    return f"{TITLES[kind]}: {curve.a:+.3f} {power} {curve.b:+.3f}\n{exponents}\nmissed: unseen {missed}"


def _critical(axes: Axes, law: MixtureLaw) -> None:
    limit = law.base_kept + law.epsilon
    axes.axhline(limit, color="#a8320a", linewidth=1, linestyle=(0, (5, 2)))
    note = f"dashed: base + {law.epsilon:g}"
    value = law.critical_ratio
    if np.isfinite(value.value):
        axes.axvline(value.value, color="#a8320a", linewidth=1)
        note += f"\ncritical R {value.value:.2f}"
    else:
        note += "\nno ratio keeps the loss below it"
    if value.low is not None and value.high is not None:
        axes.axvspan(value.low, value.high, color="#a8320a", alpha=0.10, linewidth=0)
        note += f" [{value.low:.2f},{value.high:.2f}]"
    axes.text(0.02, 0.98, note, transform=axes.transAxes, va="top", fontsize=9, color="#a8320a",
              path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip


def _count(tokens: float) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{name}"
    return f"{tokens:.0f}"
