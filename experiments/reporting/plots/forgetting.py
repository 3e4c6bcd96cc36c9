"""The picture of a run: retention against gain, one line per arm and learning rate from the base model to the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from experiments.common.colours import line_colours
from experiments.records import MEASURED, ArmResult, Estimate
from experiments.reporting.plots.caption import SHARES, Asked, caption, write_caption
from experiments.reporting.plots.style import MARKERS, STYLE
from experiments.reporting.text import ended_label, gain_name, rate_text
from experiments.scorecard.figures import FIGURES

Array = NDArray[np.float64]
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)), (0, (10, 3)), (0, (6, 2, 1, 2, 1, 2)))
START = (0.0, 1.0)  # the base model: nothing gained, all kept


@dataclass(frozen=True)
class Look:
    """How an arm at a learning rate is drawn: hue tells the method, marker the arm; shade, line and fill the rate."""

    colour: Any
    marker: str
    line: Any
    filled: bool

    @property
    def face(self) -> Any:
        return self.colour if self.filled else "white"


def points(result: ArmResult) -> list[tuple[Estimate, Estimate]]:
    """List (gain, retention) of each evaluation after step 0, if both are numbers. The gain: `text.gain_name`."""
    return list(points_by_step(result).values())


def points_by_step(result: ArmResult) -> dict[int, tuple[Estimate, Estimate]]:
    """Return `points` by their steps: an evaluation without both figures has none."""
    name = gain_name([result])
    pairs = {p["step"]: (p.get(name), p.get("retention")) for p in result.trajectory if p.get("step", 0) > 0}
    return {s: (g, r) for s, (g, r) in pairs.items() if g and r and math.isfinite(g.value) and math.isfinite(r.value)}


def forgetting_figure(results: Sequence[ArmResult], title: str, asked: Asked | None = None) -> Figure:
    """Draw retention against gain, 8 x 5.6 inches. For many arms: `multiples.gained_kept_figure`.

    An arm that did not finish ends in a cross, without bars; one without evaluations is left out. asked: for caption.
    """
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        drawn = [(result, look) for result, look in zip(results, looks(results), strict=True) if points(result)]
        _frame(axes, title, FIGURES[gain_name(results)].axis)
        for result, look in drawn:
            _draw_arm(axes, result, look)
        if drawn:
            _legend(axes, drawn)
            write_caption(figure, caption(asked or Asked(), SHARES))
        else:
            axes.text(0.5, 0.5, "no arm was evaluated", transform=axes.transAxes, ha="center", color="#5b6470")
        axes.margins(0.06, 0.08)
        figure.draw_without_rendering()
        axes.set_autoscale_on(False)
        figure.set_layout_engine("none")  # names are placed for this layout
        axes.annotate("base model", START, (-4, 7), textcoords="offset points", fontsize=9, color="#5b6470", ha="left")
        _label_ends(figure, axes, drawn)
    return figure


def looks(results: Sequence[ArmResult]) -> list[Look]:
    """Choose a look for each result: the hue of its method and the shade of its rate, as everywhere (`arm_colour`).

    Arms of one method differ in their markers. If all arms are of one method, or were trained elsewhere, the hue tells
    the arm. Line and fill tell the rate, by the order of the rates, highest first.
    """
    arms = list(dict.fromkeys(result.arm for result in results))
    rates = sorted({result.learning_rate for result in results}, reverse=True)
    colours = line_colours([(r.arm, "" if r.method == MEASURED else r.method, r.learning_rate) for r in results])
    found = []
    for result, colour in zip(results, colours, strict=True):
        arm, rate = arms.index(result.arm), rates.index(result.learning_rate)
        found.append(Look(to_rgb(colour), MARKERS[arm % len(MARKERS)], LINES[rate % len(LINES)], rate % 2 == 0))
    return found


def _frame(axes: Axes, title: str, gain: str) -> None:
    axes.axhline(1, color="#b9c0c9", linewidth=1, zorder=0)
    axes.axvline(0, color="#b9c0c9", linewidth=1, zorder=0)
    axes.plot(*START, marker="o", markersize=7, color="#1d2430", zorder=6)
    axes.set_xlabel(gain)
    axes.set_ylabel(FIGURES["retention"].axis)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
    sns.despine(ax=axes)


def _draw_arm(axes: Axes, result: ArmResult, look: Look) -> None:
    path = points(result)
    x, y = ([START[i], *(pair[i].value for pair in path)] for i in (0, 1))
    axes.plot(x, y, color=look.colour, linestyle=look.line, linewidth=1.5, alpha=0.75, zorder=2)
    axes.plot(x[1:-1], y[1:-1], ".", color=look.colour, markersize=5, alpha=0.75, zorder=3)
    if result.status != "finished":
        axes.plot(x[-1], y[-1], marker="x", color=look.colour, markersize=9, markeredgewidth=2, zorder=5)
        return
    gain, retention = path[-1]
    bars = {"color": look.colour, "linewidth": 1, "alpha": 0.55, "zorder": 3}
    if gain.low is not None and gain.high is not None:
        axes.plot([gain.low, gain.high], [y[-1]] * 2, **bars)
    if retention.low is not None and retention.high is not None:
        axes.plot([x[-1]] * 2, [retention.low, retention.high], **bars)
    axes.plot(
        x[-1], y[-1], marker=look.marker, markersize=8, color=look.colour, markerfacecolor=look.face,
        markeredgewidth=1.6, zorder=5,
    )  # fmt: skip


def _legend(axes: Axes, drawn: list[tuple[ArmResult, Look]]) -> None:
    """Explain line style and fill; arms have their names at the ends of their lines."""
    rates = {result.learning_rate: look for result, look in drawn if result.method != MEASURED}
    handles = [
        Line2D([], [], color="#5b6470", linestyle=look.line, marker="o", label=rate_text(rate),
               markerfacecolor="#5b6470" if look.filled else "white")
        for rate, look in sorted(rates.items(), reverse=True)
    ]  # fmt: skip
    axes.figure.legend(
        handles=handles, title="learning rate" if rates else None, loc="outside lower left", ncols=6, frameon=False,
        fontsize=9, title_fontsize=9, alignment="left", handlelength=3,
    )  # fmt: skip


def _label_ends(figure: Figure, axes: Axes, drawn: list[tuple[ArmResult, Look]]) -> None:
    """Write the names next to the last points, each where it hides least of the other names, points, bars and lines.

    The most crowded ends are placed first, while there is room.
    """
    figure.draw_without_rendering()
    ends = np.array([axes.transData.transform([p.value for p in points(result)[-1]]) for result, _ in drawn])
    obstacles = np.concatenate([_obstacles(axes, result) for result, _ in drawn] + [_lines(axes)])
    crowd = [(np.hypot(*(ends - end).T) < 60).sum() for end in ends]
    taken: list[Array] = []
    for i in sorted(range(len(drawn)), key=lambda i: -crowd[i]):
        result, look = drawn[i]
        dark = tuple(0.72 * c for c in look.colour)
        text = axes.annotate(
            ended_label(result), ends[i], xycoords="figure pixels", xytext=(0, 0), textcoords="offset pixels",
            fontsize=9, fontweight="bold", color=dark, ha="center", va="center", zorder=8, annotation_clip=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        box = text.get_window_extent()
        size = np.array([box.width + 6, box.height + 3])
        centre = _free_place(ends[i], size, obstacles, taken, axes)
        taken.append(np.array([centre - size / 2, centre + size / 2]))
        _move(axes, text, ends[i], centre, size, dark)


def _move(axes: Axes, text: Any, end: Array, centre: Array, size: Array, colour: Any) -> None:
    """Put the name at its place in data coordinates, with a thin line to its point if they are far apart."""
    to_data = axes.transData.inverted().transform
    text.xy, text.xycoords, text.xyann = to_data(centre), "data", (0, 0)
    near = np.clip(end, centre - size / 2, centre + size / 2)
    if np.hypot(*(near - end)) > 14:
        axes.plot(*zip(to_data(near), to_data(end), strict=True), color=colour, linewidth=0.6, alpha=0.7, zorder=4)


def _free_place(end: Array, size: Array, obstacles: Array, taken: list[Array], axes: Axes) -> Array:
    area = axes.get_window_extent()
    low, high = (
        np.array([area.x0 + 2, area.y0 + 2]),
        np.array([min(area.x1 + 45, axes.figure.bbox.x1 - 3), area.y1 + 8]),
    )

    def cost(centre: Array) -> float:
        first, last = centre - size / 2, centre + size / 2
        hidden = ((obstacles > first) & (obstacles < last)).all(axis=1).sum()
        shared = sum(np.prod(np.clip(np.minimum(last, b[1]) - np.maximum(first, b[0]), 0, None)) for b in taken)
        outside = np.clip(low - first, 0, None).sum() + np.clip(last - high, 0, None).sum()
        away = np.hypot(*(np.clip(end, first, last) - end))
        return float(hidden + 5 * shared + 50 * outside + 0.35 * away)

    return min(_places(end, size), key=cost)


def _places(end: Array, size: Array) -> Iterator[Array]:
    for gap in (9, 16, 26, 40, 58, 80, 105, 135):
        for angle in np.arange(0, 2 * np.pi, np.pi / 12):
            way = np.array([np.cos(angle), np.sin(angle)])
            yield end + way * (gap + size / 2)


def _obstacles(axes: Axes, result: ArmResult) -> Array:
    """List pixels that a name should not cover: the line and bars of an arm and, counted double, its last marker."""
    path = points(result)
    corners = [START, *((g.value, r.value) for g, r in path)]
    segments = list(itertools.pairwise(corners))
    (gain, retention), last = path[-1], corners[-1]
    if result.status == "finished":
        if gain.low is not None and gain.high is not None:
            segments.append(((gain.low, last[1]), (gain.high, last[1])))
        if retention.low is not None and retention.high is not None:
            segments.append(((last[0], retention.low), (last[0], retention.high)))
    parts = [_between(axes, first, second) for first, second in segments]
    end = axes.transData.transform(last)
    ring = [end + 5 * np.array([np.cos(a), np.sin(a)]) for a in np.linspace(0, 2 * np.pi, 24)]
    return np.concatenate([*parts, ring, ring])


def _lines(axes: Axes) -> Array:
    """List the pixels of the reference lines and of the name of the base model."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    lines = [_between(axes, (x0, 1), (x1, 1)), _between(axes, (0, y0), (0, y1))]
    base = axes.transData.transform(START)
    name = [base + np.array([x, y]) for x in range(-8, 75, 4) for y in range(-8, 25, 4)]
    return np.concatenate([*lines, name])


def _between(axes: Axes, first: tuple[float, float], second: tuple[float, float]) -> Array:
    """List points about every 4 pixels of a segment: (n, 2)."""
    a, b = axes.transData.transform([first, second])
    return np.linspace(a, b, max(2, int(np.hypot(*(b - a)) / 4)))
