"""Show figures in a notebook: drawn sharp as PNG, and where JupyterLab can, with names and numbers under the mouse.

A saved notebook has both. JupyterLab draws the second with plotly's extension; GitHub and others show the PNG. The
second is plain JSON in plotly's format (https://plotly.com/javascript/reference), so nothing here imports plotly.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common.colours import PALETTE, line_colours
from experiments.evaluation.similarity import projection
from experiments.evaluation.suites.alignment import PAIRS, States, sentences
from experiments.records import MEASURED, ArmResult, Estimate
from experiments.reporting.page import few_colours
from experiments.reporting.plots.caption import Asked, caption
from experiments.reporting.plots.forgetting import START, points_by_step
from experiments.reporting.text import ended_label, gain_name, hover_number
from experiments.scorecard.figures import FIGURES

PLOTLY = "application/vnd.plotly.v1+json"
DPI = 120  # letters of 10 points are sharp, and a notebook with six pictures stays below 300 kB
Json = dict[str, Any]
GRID: Json = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.6)", "automargin": True}


class Picture:
    """A figure for a notebook. hover: the same, or more of it, as plotly's JSON."""

    def __init__(self, figure: Figure, hover: Json | None = None) -> None:
        self.figure, self.hover = figure, hover

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[Json, Json]:
        """Called by IPython, which shows the first kind that it can."""
        data = io.BytesIO()
        self.figure.savefig(data, format="png", dpi=DPI)
        width = round(self.figure.get_figwidth() * 96)
        bundle: Json = {"image/png": base64.b64encode(few_colours(data.getvalue())).decode(), "text/plain": "<picture>"}
        return bundle | ({PLOTLY: self.hover} if self.hover else {}), {"image/png": {"width": width}}


def forgetting_hover(results: Sequence[ArmResult], rests: str = "") -> Json:
    """Draw retention against gain from the base model on: a line per arm, with the numbers of each evaluation.

    Hue: method; shade: learning rate. rests: what the figure rests on (`caption`), for the title.
    """
    name, traces = gain_name(results), []
    colours = line_colours([(r.arm, "" if r.method == MEASURED else r.method, r.learning_rate) for r in results])
    for result, colour in zip(results, colours, strict=True):
        by_step = points_by_step(result)
        if not by_step:
            continue
        steps, path = [0, *by_step], list(by_step.values())
        text = ["base model", *(f"{_interval(name, g)}<br>{_interval('retention', r)}" for g, r in path)]
        xs, ys = ([START[i], *(pair[i].value for pair in path)] for i in (0, 1))
        traces.append(
            _line(ended_label(result), xs, ys, colour, [f"step {s}<br>{t}" for s, t in zip(steps, text, strict=True)])
        )
        if result.status != "finished":  # it ends in a cross, as in the PNG
            traces[-1]["marker"]["symbol"] = ["circle"] * len(path) + ["x"]
    axes = {"xaxis": FIGURES[name].axis, "yaxis": FIGURES["retention"].axis}
    return page_of(traces, titled("Retention against gain", rests), **axes)


def projection_hover(base: States, tuned: Mapping[str, States], layer: int) -> Json:
    """Draw the probe sentences of one layer on the base's two principal axes; each point names its sentence.

    Hollow: base; filled: tuned, joined to it by a line. Hue: category of the pair; shape: arm. Raises ValueError for a
    layer that the model does not have.
    """
    _check_layer(layer, len(base.layers))
    texts, colours = [text for _, text in sentences()], dict(zip(PAIRS, PALETTE, strict=False))
    hues = [colours[category] for category, _ in sentences()]
    traces: list[Json] = []
    for number, (arm, states) in enumerate(tuned.items()):
        before, after = projection(base.layers[layer], states.layers[layer])
        count = len(before)
        moved = np.linalg.norm(states.layers[layer] - base.layers[layer], axis=1)
        said = [f"{t}<br>moved by {d:.3g}" for t, d in zip(texts, moved, strict=True)]
        if not number:
            traces.append(_dots("base", before, hues[:count], texts[:count], "circle-open"))
        traces.append(_dots(arm, after, hues[:count], said[:count], SHAPES[number % len(SHAPES)]))
    rests = caption(Asked({"probe sentences": base.layers.shape[1]}), "axes without unit", "")
    title = titled(f"Layer {layer}: sentences, projected", rests)
    return page_of(traces, title, xaxis="first principal axis of the base", yaxis="second")


def branches_hover(states: States) -> Json:
    """Draw each sentence in each expanded layer: the distance of the two branches, relative to the frozen one's length.

    A point names its sentence and alpha, the copy's share for it. Raises ValueError if the model has no two branches.
    """
    if not states.expanded:
        raise ValueError("the model has no layer with two branches: give one that was trained with method control")
    colours = dict(zip(PAIRS, PALETTE, strict=False))
    traces = []
    for category in PAIRS:
        rows = [i for i, (name, _) in enumerate(sentences()) if name == category]
        xs, ys, said = [], list[float](), list[str]()
        for layer in sorted(states.expanded):
            for i in rows:
                xs.append(layer)
                ys.append(branch_distance(states, layer, i))
                said.append(f"{sentences()[i][1]}<br>layer {layer}, alpha {states.alpha[layer][i]:.2f}")
        traces.append(marks(category, xs, ys, [colours[category]] * len(xs), said, "circle"))
    rests = caption(Asked({"probe sentences": len(sentences())}), "relative, without unit", "")
    title = titled("Distance of trained and frozen branch", rests)
    return page_of(traces, title, xaxis="expanded layer", yaxis="|copy - frozen| / |frozen|")


def branch_distance(states: States, layer: int, sentence: int) -> float:
    """Return |copy - frozen| / |frozen| of the last token's states of a sentence."""
    a, b = states.pretrained[layer][sentence], states.expanded[layer][sentence]
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


def _interval(name: str, value: Estimate) -> str:
    text = f"{FIGURES[name].title} {hover_number(value.value)}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{hover_number(value.low)}, {hover_number(value.high)}]"


def _check_layer(layer: int, count: int) -> None:
    if not 0 <= layer < count:
        raise ValueError(f"layer={layer}: the model has {count} layers, give one in 0..{count - 1}")


SHAPES = ("circle", "square", "diamond", "triangle-up", "x")


def _line(name: str, x: Sequence[float], y: Sequence[float], colour: str, text: Sequence[str]) -> Json:
    return marks(name, x, y, [colour] * len(x), text, "circle") | {"mode": "lines+markers", "line": {"color": colour}}


def _dots(name: str, xy: Any, colours: Sequence[str], text: Sequence[str], symbol: str) -> Json:
    return marks(name, xy[:, 0].tolist(), xy[:, 1].tolist(), colours, text, symbol)


def marks(
    name: str, x: Sequence[float], y: Sequence[float], colours: Sequence[str], text: Sequence[str], symbol: str
) -> Json:
    """Make a trace of points. Names and texts of others are escaped: plotly reads some HTML tags in them."""
    return {
        "type": "scatter", "mode": "markers", "name": safe(name),
        "x": _numbers(x), "y": _numbers(y),
        "text": [safe(t) for t in text], "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
        "marker": {"color": list(colours), "size": 8, "symbol": symbol},
    }  # fmt: skip


def _numbers(values: Sequence[float]) -> list[float]:
    """Write 1.0 as 1, as JupyterLab does when it saves: a notebook that nobody ran stays the same file."""
    return [int(v) if float(v).is_integer() else float(v) for v in values]


def safe(text: str) -> str:
    """Escape tags, except the line breaks that this module writes."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("&lt;br>", "<br>")


def titled(words: str, rests: str) -> str:
    """Write a title with what the figure rests on in small letters below."""
    return f"{safe(words)}<br><sub>{safe(rests)}</sub>"


def page_of(traces: Sequence[Json], title: str, xaxis: str, yaxis: str) -> Json:
    layout = {
        "title": {"text": title, "font": {"size": 14}, "x": 0.02},
        "xaxis": {"title": {"text": safe(xaxis)}, **GRID},
        "yaxis": {"title": {"text": safe(yaxis)}, **GRID},
        "height": 460, "hovermode": "closest", "font": {"color": "#808793"},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",  # light and dark themes
    }  # fmt: skip
    return {"data": list(traces), "layout": layout, "config": {"responsive": True, "displaylogo": False}}
