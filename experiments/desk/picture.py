"""Draw a run or a study while it trains: loss, forgetting, KL, and the layers of the arm that trains."""

from __future__ import annotations

import base64
from typing import Any

import matplotlib
import seaborn as sns
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common.colours import arm_colour
from experiments.common.paths import short_path
from experiments.desk.live import Live, LiveArm, values_of, words_of
from experiments.reporting.page import few_colours, image_bytes
from experiments.reporting.plots.caption import SHARES, caption, write_caption
from experiments.reporting.plots.style import STYLE
from experiments.reporting.table import Table
from experiments.scorecard.figures import FIGURES

GREY = "#5b6470"
PLACES = {"loss": "{:.3f}", "gain": "{:+.2f}", "retention": "{:.2f}", "KL": "{:.3g}", "s/step": "{:.2f}"}
DPI = 120  # of the picture in a page: a saved notebook stays small
End = tuple[str, float, float]  # an arm's name, and where its line ends
LINE, WIDTH = 0.065, 0.5  # of a name, as shares of a panel
NAMED = 6  # arms: with more, their names would cover the lines; the table has them


def html(live: Live) -> str:
    """Write one look as HTML that needs no other file: a line, a table of the arms, the picture, the report's path."""
    picture = base64.b64encode(few_colours(image_bytes(live_figure(live), "png", dpi=DPI))).decode()
    report = live.overview.folder / "report.html"
    rows = [{name: _text(name, value) for name, value in values_of(arm).items()} for arm in live.arms]
    parts = [
        Markup("<p><b>{}</b></p>").format(words_of(live)),
        Table.of(rows).html(),
        Markup('<p><img alt="loss, retention against gain, KL, layers" style="max-width: 100%; width: 1000px" ')
        + Markup('src="data:image/png;base64,{}"></p>').format(picture),
        Markup("<p>report: {}</p>").format(short_path(report)) if report.is_file() else "",
    ]
    return str(Markup("\n").join(parts))


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    return PLACES[name].format(value) if name in PLACES else str(value)


def live_figure(live: Live) -> Figure:
    """Draw four panels, 10 x 6 inches; a panel without values says so. One colour per method, as everywhere."""
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 6), layout="constrained")
        loss, path, kl, layers = figure.subplots(2, 2).flat
        begun = [arm for arm in live.arms if arm.series]
        _over_steps(loss, begun, ("lm_loss", "loss"), "loss, nats per token")
        _forgetting(path, begun)
        _over_steps(kl, begun, ("kl",), "KL to the base model, nats per token")
        _layers(layers, live.current)
        for axes in (loss, path, kl, layers):
            sns.despine(ax=axes)
        write_caption(figure, caption(live.asked, f"{SHARES}; a line for each run; hue: method, shade: rate", ""))
    return figure


def _over_steps(axes: Axes, arms: list[LiveArm], figures: tuple[str, ...], title: str) -> None:
    axes.set_xlabel("step")
    axes.set_title(title, loc="left", fontsize=10)
    ends: list[End] = []
    for arm in arms:
        series = next((arm.series[name] for name in figures if name in arm.series), None)
        if series:
            steps = sorted(series)
            _line(axes, arm, steps, [series[step] for step in steps], few=len(steps) < 20)
            ends.append((arm.name, steps[-1], series[steps[-1]]))
    _names(axes, ends, len(arms))
    _empty(axes)


def _forgetting(axes: Axes, arms: list[LiveArm]) -> None:
    axes.set_title("retention against gain, from the base model on", loc="left", fontsize=10)
    texts = any("new_nll_drop" in arm.series and "gain" not in arm.series for arm in arms)
    axes.set_xlabel(FIGURES["new_nll_drop" if texts else "gain"].labelled)
    ends: list[End] = []
    for arm in arms:
        gain = arm.series.get("gain") or arm.series.get("new_nll_drop", {})
        kept = arm.series.get("retention", {})
        steps = sorted(gain.keys() & kept.keys())
        if steps:
            _line(axes, arm, [0.0, *(gain[step] for step in steps)], [1.0, *(kept[step] for step in steps)], few=True)
            ends.append((arm.name, gain[steps[-1]], kept[steps[-1]]))
    if axes.lines:
        axes.axhline(1, color="#b9c0c9", linewidth=1, zorder=0)
        axes.plot(0, 1, "o", color="#1d2430", zorder=6)
        axes.margins(0.1, 0.12)
    _names(axes, ends, len(arms))
    _empty(axes)


def _layers(axes: Axes, arm: LiveArm | None) -> None:
    """Draw the divergence of each expanded layer at the last step, and alpha on an axis of its own."""
    divergence, alpha = (arm.layers("divergence"), arm.layers("alpha")) if arm else ({}, {})
    name = f" of {arm.name}" if arm and (divergence or alpha) else ""
    axes.set_title(f"inside the layers{name}", loc="left", fontsize=10)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if divergence:
        axes.bar(list(divergence), list(divergence.values()), color="#cc78bc", width=0.6)
        axes.set_ylabel("divergence", color="#9c4a8c")
    else:
        axes.set_yticks([])
    if alpha:
        other = axes.twinx()
        other.plot(list(alpha), list(alpha.values()), "o", color="#1d2430", markersize=4)
        other.set_ylim(-0.03, 1.03)  # dots at 0 and 1 are whole
        other.set_ylabel("alpha (dots)")
        sns.despine(ax=other, right=False)
    if not divergence and not alpha:
        _empty(axes, "no copies, or no step yet")


def _line(axes: Axes, arm: LiveArm, x: list[Any], y: list[float], few: bool) -> None:
    colour = arm_colour(arm.method or arm.name, arm.learning_rate)
    axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if few else None, markersize=4)


def _names(axes: Axes, ends: list[End], arms: int) -> None:
    """Write the names next to the ends of the lines, from below up: one that would cover another is moved up."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for name, x, y in sorted(ends, key=lambda end: end[2]) if arms <= NAMED else ():
        across, up = (x - left) / (right - left), (y - low) / (high - low)
        up = max([up, *(below + LINE for left, below in placed if abs(left - across) < WIDTH)])
        placed.append((across, up))
        axes.annotate(
            name, (across, up), (5, -2), xycoords="axes fraction", textcoords="offset points", fontsize=8,
            color="#1d2430", annotation_clip=False,
        )  # fmt: skip


def _empty(axes: Axes, text: str = "nothing measured yet") -> None:
    if not axes.lines:
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xticks([])
        axes.set_yticks([])
